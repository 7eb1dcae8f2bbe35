"""The images of requests: base64, or addresses where these are allowed. Everything in them is untrusted."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from pathlib import Path

import numpy as np

from paddlex_feat.data.images.decode import decode_bgr, read_bgr
from paddlex_feat.data.images.headers import picture_size, size_of
from paddlex_feat.data.images.source import Box, crop
from paddlex_feat.errors import ImageError
from paddlex_feat.fileio.addresses import is_url

MAX_PIXELS = 50_000_000
Fetch = Callable[[str], Path]


def image_of(text: str, fetch: Fetch | None, box: Box | None = None) -> np.ndarray:
    """Decode the image of a request: uint8 [H, W, 3], BGR.

    Args:
        text: base64 of a file, also as a data URI, or an address.
        fetch: downloads an address; None: addresses are refused.
        box: the part that is meant; None: all.

    Raises ImageError, DownloadError.
    """
    if is_url(text):
        if fetch is None:
            what, fix = "The image is an address, and these are refused.", "Send the image itself, as base64."
            raise ImageError(what, where="image", fix=fix, code="address-refused")
        file = fetch(text)
        _require_size(picture_size(file))
        image = read_bgr(str(file))
    else:
        image = _decoded(text)
    return image if box is None else crop(image, box, "image")


def _decoded(text: str) -> np.ndarray:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        what, fix = "The image is not base64.", "Send the bytes of an image file as base64."
        raise ImageError(what, where="image", fix=fix, code="image-not-base64") from None
    _require_size(size_of(data))
    return decode_bgr(data, "image")


def _require_size(size: tuple[int, int] | None) -> None:
    """Raise ImageError for a picture with too many pixels, or one whose header does not tell its size."""
    if size is None or size[0] * size[1] > MAX_PIXELS:
        told = "is not an image, or its size cannot be told" if size is None else f"has {size[0]} x {size[1]} pixels"
        fix = f"Send an image file of at most {MAX_PIXELS:,} pixels."
        raise ImageError(f"What was sent {told}.", where="image", fix=fix, code="image-size")
