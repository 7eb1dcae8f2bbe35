"""Which encoded images are handed to a decoder: of the formats promised, and no attack on time or memory.

OpenCV knows a file by its content, whatever its name, and which formats it knows depends on its version. Those that
are not promised are refused: some take 16 bytes of memory a pixel, some a temporary file.
"""

from __future__ import annotations

import io
import re
from mmap import mmap
from typing import Any

from paddlex_feat import MOST_PIXELS, OPENCV_CAME_FIRST
from paddlex_feat.errors import ImageError

_BEGIN = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM|II[*+]\0|MM\0[*+]|P[1-6]\s|\x59\xa6\x6a\x95", re.DOTALL
)
_MARKER = re.compile(rb"\xff[^\0\xff\x01\xd0-\xd8]")  # all but those without a length, which are skipped
_END, _SCAN = 0xD9, 0xDA
# A JPEG may go over all its pixels in any number of scans, each of some bytes. Photographs have at most about ten.
_MOST_SCANS = 500
_MOST_PASSES = 2**31  # scans times pixels: a few seconds
_MOST_CHUNKS = 2**18  # of a PNG file: those of 8 KiB make 2 GiB
_MOST_PIXELS_KEPT = MOST_PIXELS // 2  # of several scans, the decoder keeps 8 bytes a pixel until the last

BEGINNING = 512  # bytes that tell whether a file is an image
# Texts may begin with BM and P1 too, so BMP must have a header of a known length, PNM a size. CR2 is a camera's TIFF.
_UNLIKE = re.compile(
    rb"BM(?!.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0)|P(?!.(\s+(#[^\n]*\n\s*)*\d+){2}\s)|.{8}CR", re.DOTALL
)


def looks_like_image(beginning: bytes) -> bool:
    """Whether a file with these first BEGINNING bytes, or all of a shorter one, is of a format that is read."""
    return bool(_BEGIN.match(beginning)) and not _UNLIKE.match(beginning)


def require_decodable(data: bytes | mmap, name: str) -> None:
    """Raise ImageError, naming `name`, for an image of a format that is not read, or that is an attack."""
    if not _BEGIN.match(data):
        raise ImageError(
            "The image cannot be decoded: it is no JPEG, PNG, WebP, TIFF, BMP, GIF, PNM or Sun raster file.",
            where=name,
            fix="Save it in one of these formats, or take it off the list.",
        )
    if OPENCV_CAME_FIRST:
        _require_size(data, name)
    if data[:2] == b"\xff\xd8":
        scans, pixels = _jpeg_scans(data)
        if scans > _MOST_SCANS or scans * pixels > _MOST_PASSES or (scans > 1 and pixels > _MOST_PIXELS_KEPT):
            raise ImageError(
                f"The image cannot be decoded: {pixels} pixels in {scans} scans are too many.",
                where=name,
                fix="Save it as baseline JPEG, not progressive.",
            )
    if data[:4] == b"\x89PNG" and not _chunks_fit(data):
        raise ImageError(
            "The image cannot be decoded: its chunks do not lie in the file.",
            where=name,
            fix="Replace the file or take it off the list.",
        )


def _require_size(data: bytes | mmap, name: str) -> None:
    """Raise ImageError for more than MOST_PIXELS, which OpenCV was not told. What Pillow cannot read passes."""
    from PIL import Image

    try:
        opened: Any = data if isinstance(data, mmap) else io.BytesIO(data)  # a page's map may be of a GiB
        with Image.open(opened) as image:
            width, height = image.size
    except Image.DecompressionBombError:  # more than twice what Pillow warns of
        width = height = 2**15
    except Exception:  # noqa: BLE001 - any of Pillow's; whether it is an image OpenCV says
        return
    if width * height > MOST_PIXELS:
        raise ImageError(
            f"The image cannot be decoded: it has more than {MOST_PIXELS} pixels.", where=name, fix="Make it smaller."
        )


def _jpeg_scans(data: bytes | mmap) -> tuple[int, int]:
    """Number of scans and of pixels of a JPEG (ITU-T T.81, B.1.1), up to its end or one scan too many."""
    at, scans, pixels = 2, 0, 0
    while scans <= _MOST_SCANS and (found := _MARKER.search(data, at)):
        marker, at = data[found.start() + 1], found.end()
        if marker == _END:
            break
        scans += marker == _SCAN
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame's header
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (3, 5))
            pixels = max(pixels, width * height)
        at += int.from_bytes(data[at : at + 2], "big")
    return scans, pixels


def _chunks_fit(data: bytes | mmap) -> bool:
    """Whether no chunk of a PNG is longer than the file: OpenCV sets aside the up to 4 GiB that one claims."""
    at = 8
    for _ in range(_MOST_CHUNKS):
        if at + 8 > len(data) or data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at > len(data):
            return False
    return False
