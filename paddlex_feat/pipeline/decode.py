"""Encoded image bytes to pixels."""

from __future__ import annotations

import stat
from pathlib import Path

import cv2
import numpy as np

from paddlex_feat.errors import ImageError

MOST_BYTES = 2**30  # of an image file; a larger one is not read

SUFFIXES = frozenset(
    f".{s}"
    for s in ("bmp", "dib", "jpeg", "jpg", "png", "webp", "pbm", "pgm", "ppm", "pnm", "sr", "ras", "tif", "tiff")
)


def decode_bgr(data: bytes, name: str) -> np.ndarray:
    """Pixels of an encoded image: uint8 [H, W, 3], BGR, EXIF rotation applied, alpha dropped.

    Raises ImageError naming `name` if the bytes are no image.
    """
    if not data:
        raise ImageError("The image file is empty.", where=name, fix="Replace the file or take it off the list.")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
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


def read_rgb(path: str | Path) -> np.ndarray:
    """Pixels of an image file, as `decode_rgb`. Raises ImageError if it cannot be read."""
    try:
        status = Path(path).stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MOST_BYTES:
            raise OSError(None, f"no file of at most {MOST_BYTES} bytes")
        data = Path(path).read_bytes()
    except (OSError, ValueError) as error:
        raise ImageError(
            f"The image cannot be read ({getattr(error, 'strerror', error)}).",
            where=str(path),
            fix="Check the path and its permissions.",
        ) from error
    return decode_rgb(data, str(path))
