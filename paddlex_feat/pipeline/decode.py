"""Encoded image bytes to pixels."""

from __future__ import annotations

import stat
from collections.abc import Callable
from mmap import mmap
from pathlib import Path

import cv2
import numpy as np

from paddlex_feat import MOST_PIXELS
from paddlex_feat.errors import ImageError
from paddlex_feat.pipeline.formats import require_decodable

MOST_BYTES = 2**30  # of an image file; a larger one is not read
MOST_WHOLE = 350_000_000  # bytes of one that is read whole, so that it fits beside MOST_PIXELS in 1 GiB
REDUCED = ((8, cv2.IMREAD_REDUCED_COLOR_8), (4, cv2.IMREAD_REDUCED_COLOR_4), (2, cv2.IMREAD_REDUCED_COLOR_2))
Enough = Callable[[int, int], bool]  # of (width, height): is an image of this size large enough?

SUFFIXES = frozenset(
    f".{s}"
    for s in ("bmp", "dib", "gif", "jfi", "jfif", "jif", "jpe", "jpeg", "jpg", "pjp", "pjpeg", "png", "webp",
              "pbm", "pgm", "ppm", "pnm", "sr", "ras", "tif", "tiff")
)  # fmt: skip


def decode_bgr(data: bytes, name: str, enough: Enough | None = None) -> np.ndarray:
    """Pixels of an encoded image: uint8 [H, W, 3], BGR, EXIF rotation applied, alpha dropped.

    With `enough`, a JPEG is decoded at 1/8, 1/4 or 1/2 of its size, sides rounded up: the
    smallest that is enough either way round, for the header does not know of the EXIF rotation.

    Raises ImageError naming `name` if the bytes are no image.
    """
    return decode_with(data, name, decode_flags(jpeg_size(data) if enough else None, enough))


def decode_with(data: bytes | mmap, name: str, flags: int) -> np.ndarray:
    """As `decode_bgr`, with the flags of cv2.imdecode."""
    if not data:
        raise ImageError("The image file is empty.", where=name, fix="Replace the file or take it off the list.")
    require_decodable(data, name)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:  # e.g. more pixels than MOST_PIXELS
        raise ImageError(
            f"The image cannot be decoded ({error.err or error}).", where=name, fix="Replace or remove it."
        ) from error
    if image is None:
        raise ImageError("The image cannot be decoded.", where=name, fix="Replace the file or take it off the list.")
    return image


def decode_rgb(data: bytes, name: str) -> np.ndarray:
    """As `decode_bgr`, in RGB order."""
    return cv2.cvtColor(decode_bgr(data, name), cv2.COLOR_BGR2RGB)


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from the frame header of a JPEG (ITU-T T.81, B.2.2); None where it is not plain."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # tables share the range of the frames
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            return (width, height) if width and height else None
        elif marker >= 0xE0 or marker in (0xC4, 0xCC, 0xDB, 0xDD):
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        else:
            return None
    return None


def read_bgr(path: str | Path, enough: Enough | None = None) -> np.ndarray:
    """Pixels of an image file, as `decode_bgr`. Raises ImageError if it cannot be read."""
    return decode_bgr(read_content(path), str(path), enough)


def read_rgb(path: str | Path, enough: Enough | None = None) -> np.ndarray:
    """As `read_bgr`, in RGB order."""
    return cv2.cvtColor(read_bgr(path, enough), cv2.COLOR_BGR2RGB)


def decode_flags(size: tuple[int, int] | None, enough: Enough | None) -> int:
    """How cv2.imdecode should decode a JPEG of this (width, height), or another image (None)."""
    if enough is None or size is None or size[0] * size[1] > MOST_PIXELS:
        return cv2.IMREAD_COLOR
    for factor, flag in REDUCED:
        width, height = (-(-side // factor) for side in size)
        if enough(width, height) and enough(height, width):
            return flag
    return cv2.IMREAD_COLOR


def read_content(path: str | Path) -> bytes:
    """The bytes of an image file. Raises ImageError if they cannot be read."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_WHOLE:
            raise OSError(None, f"no file of at most {MOST_WHOLE} bytes")
        return Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(
            f"The image cannot be read ({getattr(error, 'strerror', error)}).",
            where=str(path),
            fix="Check the path and its permissions.",
        ) from error
