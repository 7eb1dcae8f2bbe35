"""Image files, as check_dataset inspects them and as prediction reads them."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from functools import lru_cache
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from paddlex_feat.checks.image_info import inspect
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ImageError
from paddlex_feat.inference.inputs.items import iter_images
from support.fuzz.target import Target

LARGEST = (10000, 11000)  # no image of more pixels is decoded
_PAGES = 4  # of a file that are read
_SMALL = Preprocess(size=32)


@lru_cache
def _picture() -> np.ndarray:
    """Neither flat nor noise."""
    y, x = np.mgrid[:40, :56]
    return np.stack([x * 4, y * 5, (x * y) % 256], axis=-1).astype(np.uint8)


def _opencv(suffix: str, *flags: int, image: np.ndarray | None = None) -> bytes:
    return cv2.imencode(suffix, _picture() if image is None else image, flags)[1].tobytes()


def _pillow(form: str, mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(_picture()).convert(mode).save(stream, form, **options)
    return stream.getvalue()


def _rotated() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return _pillow("JPEG", exif=exif)


def _jpegs() -> list[bytes]:
    return [
        _opencv(".jpg"),
        _opencv(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
        _opencv(".jpg", cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
        _pillow("JPEG", "CMYK"),
        _pillow("JPEG", "L"),
        _rotated(),
    ]


def sized_jpeg(data: bytes, width: int, height: int) -> bytes:
    """The same file with another size in its frame header."""
    at = next(i for i in range(len(data)) if data[i : i + 2] in (b"\xff\xc0", b"\xff\xc2"))
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


def scans_jpeg(width: int, height: int, scans: int, colour: bool = True) -> bytes:
    """A progressive JPEG that goes over all its pixels again and again; a scan takes ten bytes and some zeros."""
    data = _opencv(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1, image=np.zeros((16, 16, 3 if colour else 1), np.uint8))
    last = data.rindex(b"\xff\xda")
    return sized_jpeg(data[:last] + data[last:-2] * scans + data[-2:], width, height)


def _jpeg_attacks() -> list[bytes]:
    plain, progressive = _opencv(".jpg"), _opencv(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    sizes = ((65500, 65500), (65500, 4000), (10000, 12000), (7000, 8000), (65535, 1), (0, 40), (40, 0))
    return [
        *(sized_jpeg(data, *size) for data in (plain, progressive) for size in sizes),
        scans_jpeg(7000, 8000, 1000),
        scans_jpeg(2000, 2000, 20_000),
        scans_jpeg(64, 64, 10_000, colour=False),
        plain[:2] + b"\xff\xe1\xff\xffExif\0\0" + plain[2:],
        plain[:2] + b"\xff" * 100_000 + plain[2:],
        plain[:2] + b"\xff\xfe\0\x02" * 30_000 + plain[2:],
        plain[:-2] + b"\0" * 100_000,
    ]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(
    width: int, height: int, depth: int = 8, colour: int = 2, pixels: bytes = b"", lace: int = 0, more: bytes = b""
) -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, lace))
    return b"\x89PNG\r\n\x1a\n" + header + more + _chunk(b"IDAT", zlib.compress(pixels, 1)) + _chunk(b"IEND", b"")


def _largest_png() -> bytes:
    packer = zlib.compressobj(1)
    rows = b"".join(packer.compress(bytes(1 + 3 * LARGEST[0])) for _ in range(LARGEST[1])) + packer.flush()
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", *LARGEST, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + _chunk(b"IDAT", rows) + _chunk(b"IEND", b"")


def _largest_webp() -> bytes:
    """Of one colour, so that the pixels take no bits and the size alone makes it large."""
    data = _opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 101, image=np.full((16, 16, 4), 128, np.uint8))
    width, height = LARGEST
    bits = int.from_bytes(data[21:25], "little") >> 28 << 28 | (width - 1) | (height - 1) << 14
    return data[:21] + bits.to_bytes(4, "little") + data[25:]


def mended_png(data: bytes) -> bytes:
    """The same chunks with right checksums, so that changes get past them."""
    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        length = min(int.from_bytes(data[at : at + 4], "big"), len(data) - at - 12)
        out += _chunk(data[at + 4 : at + 8], data[at + 8 : at + 8 + length])
        at += 12 + length
    return bytes(out)


def _pngs() -> list[bytes]:
    deep = _picture().astype(np.uint16) * 257
    frames = [Image.fromarray(np.roll(_picture(), n, 0)) for n in range(3)]
    return [
        _opencv(".png"),
        _opencv(".png", image=deep),
        _pillow("PNG", "P"),
        _pillow("PNG", "RGBA"),
        _pillow("PNG", "LA"),
        _pillow("PNG", "1"),
        _pillow("PNG", save_all=True, append_images=frames),
        _png(5, 5, lace=1, pixels=b"\0\1\2\3" * 60),
    ]


def _png_attacks() -> list[bytes]:
    bomb = zlib.compress(bytes(100_000_000), 9)
    return [
        *(
            _png(*size)
            for size in ((2**31 - 1, 1), (1, 2**31 - 1), (60000, 60000), (0, 1), (16000, 16000), (10000, 10900))
        ),
        _png(10000, 10900, 16, 6, bytes(9_000_000)),
        _png(10000, 10900, 16, 6, bytes(9_000_000), lace=1),
        _png(40, 40, pixels=bytes(300_000_000)),
        _png(4, 4, pixels=bytes(100), more=_chunk(b"zTXt", b"a\0\0" + bomb) * 5),
        _png(4, 4, pixels=bytes(100), more=_chunk(b"iCCP", b"a\0\0" + bomb)),
        _png(4, 4, pixels=bytes(100), more=_chunk(b"tEXt", b"a\0b") * 50_000),
        _png(4, 4, pixels=bytes(100), more=_chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff")),
        _png(4, 4, colour=3, pixels=b"\xff" * 100, more=_chunk(b"PLTE", b"abc")),
        _png(4, 4, pixels=bytes(100), more=_chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0))),
    ]


def _webps() -> list[bytes]:
    frames = [Image.fromarray(np.roll(_picture(), n, 0)) for n in range(3)]
    return [
        _opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 60),
        _opencv(".webp", cv2.IMWRITE_WEBP_QUALITY, 101),
        _pillow("WEBP", "RGBA", lossless=True, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0"),
        _pillow("WEBP", save_all=True, append_images=frames),
    ]


def _webp_attacks() -> list[bytes]:
    lossy, lossless, extended, animated = _webps()
    size = lossy.index(b"\x9d\x01\x2a") + 3
    return [
        lossy[:size] + struct.pack("<HH", 16383, 16383) + lossy[size + 4 :],
        lossy[:size] + struct.pack("<HH", 10000, 10900) + lossy[size + 4 :],
        lossless[:21] + b"\xff" * 4 + lossless[25:],
        *(data[:24] + b"\xff" * 6 + data[30:] for data in (extended, animated)),
        *(
            data[:at] + struct.pack("<I", number) + data[at + 4 :]
            for data in _webps()
            for at in (4, 16)
            for number in (0, 1, 2**32 - 1)
        ),
        animated + animated[12:] * 300,
    ]


def tiff(order: str, *pages: list[tuple[int, int, int, int]], following: int = 0, pad: int = 0) -> bytes:
    """Directories of (tag, type, count, value), a chain; `following` is what the last one names."""
    out, at = b"", 8 + pad
    for number, entries in enumerate(pages):
        size = 6 + 12 * len(entries)
        last = following if number == len(pages) - 1 else at + size
        out += struct.pack(order + "H", len(entries))
        for tag, kind, count, value in entries:
            small = kind == 3 and count == 1
            out += struct.pack(order + "HHI", tag, kind, count)
            out += struct.pack(order + "HH", value, 0) if small else struct.pack(order + "I", value % 2**32)
        out += struct.pack(order + "I", last)
        at += size
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8 + pad) + bytes(pad) + out


def page(width: int, height: int, **tags: int) -> list[tuple[int, int, int, int]]:
    """The directory of an uncompressed grey page whose pixels stand at offset 8; `t322=…` sets the tag 322."""
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height}
    values |= {int(name[1:]): value for name, value in tags.items()}
    return [(tag, 4 if value > 65535 else 3, 1, value) for tag, value in sorted(values.items())]


def _tiffs() -> list[bytes]:
    pages = [Image.fromarray(np.roll(_picture(), n, 0)) for n in range(3)]
    return [
        _opencv(".tiff"),
        _opencv(".tiff", image=_picture().astype(np.float32)),
        _opencv(".tiff", image=_picture().astype(np.uint16)),
        *(_pillow("TIFF", compression=kind) for kind in ("tiff_lzw", "jpeg", "tiff_adobe_deflate", "packbits")),
        _pillow("TIFF", "1", compression="group4"),
        _pillow("TIFF", save_all=True, append_images=pages),
        _pillow("TIFF", big_tiff=True, save_all=True, append_images=pages),
        _pillow("TIFF", "CMYK"),
        tiff(">", page(8, 8), page(8, 8), pad=64),
        tiff("<", page(16, 16, t322=16, t323=16, t324=8, t325=256), pad=256),
    ]


def _tiff_attacks() -> list[bytes]:
    big = 2**32 - 1
    sizes = ((big, big), (big, 1), (1, big), (60000, 60000), (10000, 10900), (0, 0))
    tiles = {"t324": 8, "t325": 256}
    tags = (258, 259, 262, 273, 277, 278, 279, 284, 317, 339)
    numbers = (0, 2, 3, 5, 6, 7, 8, 16, 32, 64, 50000, 65535, big)
    entries = [(tag, kind) for tag in (256, 258, 273, 33432) for kind in range(1, 14)]
    return [
        *(tiff(order, page(4, 4), page(4, 4), following=8 + 16, pad=16) for order in "<>"),  # the chain goes round
        tiff("<", page(4, 4), following=8, pad=0),
        tiff("<", page(4, 4), following=big, pad=16),
        tiff("<", *[[]] * 60_000, pad=0),
        tiff("<", *[page(4, 4)] * 1500, pad=16),
        *(tiff("<", page(*size), pad=64) for size in sizes),
        *(tiff("<", page(16, 16, **tiles, t322=side, t323=side), pad=256) for side in (16, 30000, 65520, 2**24)),
        *(tiff("<", page(64, 64, **{f"t{tag}": number}), pad=4096) for tag in tags for number in numbers),
        *(b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", *entry, big, 8) + bytes(4) for entry in entries),
        b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(64),
        b"II*\0\x08\0\0\0\xff\xff" + bytes(12 * 65535),
    ]


def _others() -> list[bytes]:
    frames = [Image.fromarray(np.roll(_picture(), n, 0)) for n in range(3)]
    return [
        _pillow("GIF", "P"),
        _pillow("GIF", save_all=True, append_images=frames),
        _opencv(".bmp"),
        _pillow("BMP", "P"),
        *(
            _opencv(suffix, image=_picture()[:, :, 0] if suffix == ".pgm" else None)
            for suffix in (".pgm", ".ppm", ".pam", ".sr")
        ),
        b"P1\n# c\n4 2\n0 1 0 1\n1 1 1 0\n",
        b"P2\n3 2\n255\n0 1 2\n3 4 5\n",
        b"P3\n1 2\n9\n0 1 2\n3 4 5\n",
        b"P4\n9 2\n\xff\x80\x01\x00",
        *(_opencv(suffix) for suffix in (".jp2", ".avif", ".hdr") if cv2.haveImageWriter(suffix)),
        *(_opencv(suffix, image=_picture().astype(np.float32)) for suffix in (".pfm", ".hdr")),
    ]


def _other_attacks() -> list[bytes]:
    gif = _pillow("GIF", "P")
    bmp = _opencv(".bmp")
    return [
        gif[:6] + b"\xff" * 4 + gif[10:],
        gif[:-1] + gif[gif.index(b",") : -1] * 2000 + gif[-1:],
        *(
            bmp[:18] + struct.pack("<ii", *size) + bmp[26:]
            for size in ((2**31 - 1, 2**31 - 1), (40, -(2**31)), (-1, 40))
        ),
        *(form + b"\n60000 60000\n255\n" for form in (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6")),
        b"P5\n99999999999999999999 1\n255\n",
        b"P5\n4 4\n" + b"9" * 100_000 + b"\n",
        b"P2\n" + b"# c\n" * 200_000 + b"2 2\n255\n1 2 3 4\n",
        b"P2\n" + b"#" + b"c " * 200_000,
        b"P7\nWIDTH 60000\nHEIGHT 60000\nDEPTH 3\nMAXVAL 255\nTUPLTYPE RGB\nENDHDR\n",
        b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y 10000 +X 10900\n" + b"\x02\x02\x2a\x94" * 1000,
    ]


def _use(suffix: str, mend: Callable[[bytes], bytes] | None = None) -> Callable[[bytes, Path], str]:
    def use(data: bytes, folder: Path) -> str:
        cv2.setNumThreads(1)
        path = folder / f"a{suffix}"
        path.write_bytes(mend(data) if mend and zlib.crc32(data) % 2 else data)
        info = inspect(str(path))
        faults = []
        for item in islice(iter_images(str(path)), _PAGES):
            for is_large_enough in (None, lambda width, height: min(width, height) >= 8):
                try:
                    pixels = item.load(_SMALL.resize, is_large_enough)
                    assert pixels.shape == (32, 32, 3) and pixels.dtype == np.uint8
                except ImageError as error:
                    faults.append(error)
        if not info.error and not suffix.startswith(".tif"):  # whose later pages check_dataset does not read
            assert not faults, f"check_dataset accepts what prediction cannot read: {faults[0]}"
        if info.error:
            return info.error
        return "accepted"

    return use


def _largest() -> list[bytes]:
    gif, bmp = _pillow("GIF", "P"), _opencv(".bmp")
    return [
        sized_jpeg(_opencv(".jpg"), *LARGEST),
        sized_jpeg(_rotated(), *LARGEST),
        sized_jpeg(_opencv(".jpg", cv2.IMWRITE_JPEG_PROGRESSIVE, 1), 7400, 7400),
        _largest_png(),
        _png(*LARGEST, 16, 6, bytes(9_000_000), lace=1),
        _largest_webp(),
        gif[:6] + struct.pack("<HH", *LARGEST) + gif[10:],
        bmp[:18] + struct.pack("<ii", *LARGEST) + bmp[26:],
        *(form + b"\n10000 11000\n255\n1 2 3" for form in (b"P3", b"P6")),
        tiff("<", page(*LARGEST, t259=32773), pad=64),
    ]


_JPEG_MARKERS = (0, 0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xD0, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE1, 0xEE)
_JPEG_TOKENS = [b"\xff" + bytes([n]) for n in _JPEG_MARKERS] + [b"Exif\0\0", b"Adobe\0"]
_PNG_TOKENS = b"IHDR IDAT PLTE tRNS IEND acTL fcTL fdAT eXIf iCCP gAMA zTXt \xff\xff\xff\xff".split()
_WEBP_TOKENS = [b"VP8 ", *b"RIFF VP8L VP8X ALPH ANIM ANMF EXIF ICCP".split()]
_TAGS = (256, 259, 273, 278, 279, 322, 325, 339, 34665)
_TIFF_TOKENS = [b"II*\0", b"MM\0*", b"II+\0", *(struct.pack("<H", tag) for tag in _TAGS)]
_OTHER_TOKENS = [b"GIF89a", b",", b"!\xf9\4", b"BM", b"P5\n", b"P6 ", b"65535", b" 0 ", b"#", b"\n"]
PNG = Target("png", _pngs, _png_attacks, _PNG_TOKENS, _use(".png", mended_png))
IMAGES = (
    Target("jpeg", _jpegs, _jpeg_attacks, _JPEG_TOKENS, _use(".jpg")),
    PNG,
    Target("webp", _webps, _webp_attacks, _WEBP_TOKENS, _use(".webp")),
    Target("tiff", _tiffs, _tiff_attacks, _TIFF_TOKENS, _use(".tiff")),
    Target("largest", lambda: _jpegs()[:1], _largest, _JPEG_TOKENS, _use(".jpg")),
    Target("others", _others, _other_attacks, _OTHER_TOKENS, _use(".bmp")),
)
