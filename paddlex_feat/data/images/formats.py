"""Decide which files are given to a decoder: supported formats only, and none that would exhaust time or memory.

OpenCV recognizes a file by its content, and its formats depend on its version. Formats that are not documented are
refused: some take 16 bytes of memory a pixel, some a temporary file.
"""

from __future__ import annotations

import re
from mmap import mmap

from paddlex_feat.data.images import jpeg, limits
from paddlex_feat.data.images.limits import MAX_PIXELS
from paddlex_feat.errors import ImageError

SUFFIXES = frozenset(
    f".{s}"
    for s in ("bmp", "dib", "gif", "jfi", "jfif", "jif", "jpe", "jpeg", "jpg", "pjp", "pjpeg", "png", "webp",
              "pbm", "pgm", "ppm", "pnm", "sr", "ras", "tif", "tiff")
)  # fmt: skip
_BEGIN = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|RIFF....WEBP|GIF8[79]a|BM|II[*+]\0|MM\0[*+]|P[1-6]\s|\x59\xa6\x6a\x95", re.DOTALL
)
_REPLACE = "Copy or download it again, or take it off the list."
_CONVERT = "Save it as JPEG or PNG, or take it off the list."
_OTHER_KINDS = [  # how the content begins, what it is, what to do
    (re.compile(pattern, re.DOTALL | re.IGNORECASE), what, fix)
    for pattern, what, fix in (
        (
            rb"version https://git-lfs",
            "it is a pointer of Git LFS, and the image itself was not fetched",
            "Run git lfs pull.",
        ),
        (rb".{4}ftyp(heic|heix|hevc|heim|heis|mif1|msf1)", "it is a HEIC file", _CONVERT),
        (rb".{4}ftypavi[fs]", "it is an AVIF file", _CONVERT),
        (rb".{4}ftyp|.{4}moov|\x1aE\xdf\xa3|RIFF.{4}AVI ", "it is a video", "Save its frames as JPEG or PNG."),
        (rb"\xff\x0a|\0\0\0\x0cJXL ", "it is a JPEG XL file", _CONVERT),
        (rb"\0\0\0\x0cjP|\xffO\xffQ", "it is a JPEG 2000 file", _CONVERT),
        (rb"\s*<(!doctype html|html|head|body)", "it is a web page, perhaps a server's error message", _REPLACE),
        (rb"\s*(<\?xml.*)?<svg", "it is an SVG drawing", _CONVERT),
        (rb"%PDF", "it is a PDF document", _CONVERT),
        (rb"8BPS", "it is a Photoshop file", _CONVERT),
        (rb"\0\0\x01\0", "it is an icon", _CONVERT),
        (rb"PK\x03\x04|\x1f\x8b|Rar!|7z\xbc\xaf", "it is an archive", "Unpack it."),
    )
]
# A JPEG may go over all its pixels in any number of scans, each of some bytes. Photographs have at most about ten.
_MAX_SCANNED_PIXELS = 2**31  # scans times pixels: a few seconds
_MAX_PNG_CHUNKS = 2**18  # of a PNG file: those of 8 KiB make 2 GiB
_MAX_PROGRESSIVE_PIXELS = MAX_PIXELS // 2  # of several scans, the decoder keeps 8 bytes a pixel until the last

_SUFFIX_BY_BEGINNING = (
    (b"\xff\xd8", ".jpg"),
    (b"\x89PNG", ".png"),
    (b"RIFF", ".webp"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II", ".tif"),
    (b"MM", ".tif"),
    (b"\x59\xa6\x6a\x95", ".ras"),
    *((b"P%d" % number, ".pnm") for number in range(1, 7)),
)
BEGINNING = 512  # bytes that tell whether a file is an image
# Texts may begin with BM and P1 too, so BMP must have a header of a known length, PNM a size. CR2 is a camera's TIFF.
_UNLIKE = re.compile(
    rb"BM(?!.{12}[\x0c\x10\x28\x34\x38\x40\x6c\x7c]\0\0\0)|P(?!.(\s+(#[^\n]*\n\s*)*\d+){2}\s)|.{8}CR", re.DOTALL
)


def looks_like_image(beginning: bytes) -> bool:
    """Whether a file that begins with these bytes, BEGINNING of them at most, is of a supported format."""
    return bool(_BEGIN.match(beginning)) and not _UNLIKE.match(beginning)


def suffix_of(data: bytes) -> str:
    """The usual suffix of an image's format by its content, such as ".jpg"; ".img" for others."""
    return next((suffix for begin, suffix in _SUFFIX_BY_BEGINNING if data.startswith(begin)), ".img")


def require_decodable(data: bytes | mmap, name: str) -> jpeg.Layout | None:
    """Refuse content that must not be given to a decoder.

    Args:
        data: content of an image file.
        name: of the image, for the error.

    Returns:
        The layout of a JPEG, None for other formats.

    Raises:
        ImageError: the format is not supported, or decoding would take too much time or memory.
    """
    layout = None
    if not _BEGIN.match(data):
        what, fix = _other_kind(data)
        raise ImageError(f"The image cannot be decoded: {what}.", where=name, fix=fix, code="image-format")
    if not limits.opencv_has_limit:
        _require_size(data, name)
    if data[:2] == b"\xff\xd8":
        layout = jpeg.read_layout(data)
        scans, pixels = layout.scans, layout.pixels
        if (
            scans > jpeg.MAX_SCANS
            or scans * pixels > _MAX_SCANNED_PIXELS
            or (scans > 1 and pixels > _MAX_PROGRESSIVE_PIXELS)
        ):
            raise ImageError(
                f"The image cannot be decoded: {pixels} pixels in {scans} scans are too many.",
                where=name,
                fix="Save it as baseline JPEG, not progressive.",
                code="image-too-many-scans",
            )
    if data[:4] == b"\x89PNG" and not _chunks_fit(data):
        raise ImageError(
            "The image cannot be decoded: its chunks are longer than the file.",
            where=name,
            fix="Replace the file or take it off the list.",
            code="image-undecodable",
        )
    return layout


def _other_kind(data: bytes | mmap) -> tuple[str, str]:
    """What kind of file it is instead of a supported image, and what to do about it."""
    head = bytes(data[:4096])
    for pattern, what, fix in _OTHER_KINDS:
        if pattern.match(head):
            return what, fix
    if not head.strip(b"\0"):
        return "it begins with zeros, like an unfinished copy or download", _REPLACE
    what = "it is not a JPEG, PNG, WebP, TIFF, BMP, GIF, PNM or Sun raster file"
    return what, "Save it in one of these formats, or take it off the list."


def _require_size(data: bytes | mmap, name: str) -> None:
    """Raise ImageError for more than MAX_PIXELS, by the header. Headers that Pillow cannot read pass."""
    from paddlex_feat.data.images.pillow import open_image

    try:
        with open_image(data) as image:
            width, height = image.size
    except Exception:  # noqa: BLE001 - Pillow raises nearly anything; OpenCV decides whether it is an image
        return
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"The image cannot be decoded: it has more than {MAX_PIXELS} pixels.",
            where=name,
            fix="Make it smaller.",
            code="image-too-large",
        )


def _chunks_fit(data: bytes | mmap) -> bool:
    """Whether no chunk of a PNG is longer than the file: OpenCV sets aside the up to 4 GiB that one claims."""
    at = 8
    for _ in range(_MAX_PNG_CHUNKS):
        if at + 8 > len(data) or data[at + 4 : at + 8] == b"IEND":
            return True
        at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at > len(data):
            return False
    return False


def ends_early(data: bytes | mmap) -> bool:
    """Whether the end of a JPEG, PNG or WebP image is missing. Bytes after the end do not matter."""
    if data[:2] == b"\xff\xd8":
        return data[-2:] != b"\xff\xd9" and not jpeg.end_of_image(data)
    if data[:4] == b"\x89PNG":
        return data.find(b"IEND\xaeB`\x82") < 0
    return data[:4] == b"RIFF" and len(data) < 8 + int.from_bytes(data[4:8], "little")
