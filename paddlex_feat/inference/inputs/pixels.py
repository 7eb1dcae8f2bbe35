"""NumPy arrays and PIL images as the arrays that OpenCV reads from files."""

from __future__ import annotations

import threading

import numpy as np
from PIL import Image, ImageOps

from paddlex_feat.data.images.limits import MAX_PIXELS
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.errors import ImageError

_CODES = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}  # by the number of channels
_pillow = threading.Lock()  # two threads must not load the same PIL image at once


def bgr_of_array(array: np.ndarray, location: str) -> np.ndarray:
    """uint8 [H, W], [H, W, 1], [H, W, 3] BGR or [H, W, 4] BGRA -> uint8 [H, W, 3] BGR, contiguous.

    Raises ImageError, which names `location`, for any other array and for more than MAX_PIXELS pixels.
    """
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if array.ndim == 4 or array.dtype.kind in "OU":
        raise ImageError(
            f"An array of shape {array.shape} and type {array.dtype} is not one image.",
            where=location,
            fix="If it holds several inputs, give list(array).",
            code="array-of-several",
        )
    if array.dtype != np.uint8 or channels not in (1, 3, 4) or not array.size:
        raise ImageError(
            f"An array of shape {array.shape} and type {array.dtype} is not an image.",
            where=location,
            fix="Give uint8 [H, W, 3] in BGR order, [H, W, 4] in BGRA order, or [H, W] in grey.",
            code="array-invalid",
        )
    _check_size(array.shape[1], array.shape[0], location)
    array = np.ascontiguousarray(array)
    return array if channels == 3 else cv2.cvtColor(array, _CODES[channels])


def bgr_of_pil(image: Image.Image, location: str) -> np.ndarray:
    """uint8 [H, W, 3] BGR, as OpenCV reads such a file: EXIF rotation applied, alpha dropped, upper 8 of 16 bits.

    Raises ImageError, which names `location`.
    """
    _check_size(*image.size, location)
    try:
        with _pillow:
            if image.mode == "F":
                raise ValueError("mode F has no range that means black and white; convert it to L or RGB")
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "La":  # grey premultiplied by alpha, which Pillow converts only by way of LA
                upright = upright.convert("LA")
            if upright.mode.startswith("I"):
                grey: np.ndarray = np.clip(np.asarray(upright), 0, 2**16 - 1) >> 8
                return cv2.cvtColor(grey.astype(np.uint8), cv2.COLOR_GRAY2BGR)
            return cv2.cvtColor(np.asarray(upright.convert("RGB")), cv2.COLOR_RGB2BGR)
    except Exception as error:  # Pillow reads an opened file only now: any exception of its decoders
        raise unusable_pil(error, location) from error


def unusable_pil(error: Exception, location: str) -> ImageError:
    """The error of a PIL image that Pillow cannot read or convert."""
    return ImageError(
        f"The PIL image cannot be used ({type(error).__name__}: {error}).",
        where=location,
        fix="Replace it.",
        code="pil-invalid",
    )


def _check_size(width: int, height: int, location: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"The image has {width} x {height} pixels, more than {MAX_PIXELS}.",
            where=location,
            fix="Make it smaller.",
            code="image-too-large",
        )
