"""The images of requests: base64, or addresses where these are allowed. Everything in them is untrusted."""

from __future__ import annotations

import base64
import binascii
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import numpy as np

from paddlex_feat.data.images.decode import decode_bgr
from paddlex_feat.data.images.headers import size_of
from paddlex_feat.data.images.source import Box, crop
from paddlex_feat.errors import ImageError
from paddlex_feat.fileio.addresses import is_url
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.hub.fetch import fetch_url

MAX_PIXELS = 50_000_000
FETCH_SECONDS = 30  # for an address, and as many more for what has begun to be read
Fetch = Callable[[str], bytes]
Read = Callable[[], np.ndarray]


def reader_of(text: str, fetch: Fetch | None, box: Box | None = None) -> Read:
    """What decodes the image of a request: uint8 [H, W, 3], BGR. It raises ImageError.

    Args:
        text: base64 of a file, also as a data URI, or an address, which is downloaded at once.
        fetch: downloads an address; None: addresses are refused.
        box: the part that is meant; None: all.

    Raises ImageError, DownloadError.
    """
    if not is_url(text):
        return partial(_decoded, text, box)
    if fetch is None:
        what, fix = "The image is an address, and these are refused.", "Send the image itself, as base64."
        raise ImageError(what, where="image", fix=fix, code="address-refused")
    return partial(_decoded, fetch(text), box)


def fetch_image(url: str, max_bytes: int) -> bytes:
    """What an address has now, which is not kept: the next request may find another picture. Raises DownloadError."""
    cancel = threading.Event()
    timer = threading.Timer(FETCH_SECONDS, cancel.set)
    timer.start()
    try:
        with TemporaryFolder() as folder:
            fix = "Send the image itself, as base64."
            return fetch_url(url, str(folder), fix, max_bytes=max_bytes, cancel=cancel, shown=False).read_bytes()
    finally:
        timer.cancel()


def _decoded(content: str | bytes, box: Box | None) -> np.ndarray:
    data = content if isinstance(content, bytes) else _bytes_of(content)
    _require_size(size_of(data))
    image = decode_bgr(data, "image")
    return image if box is None else crop(image, box, "image")


def _bytes_of(text: str) -> bytes:
    if text.startswith("data:"):
        text = text.partition(",")[2]
    text = "".join(text.split())  # with line ends, as the command base64 writes it
    with suppress(binascii.Error, ValueError):
        return base64.b64decode(text, validate=True)
    what, fix = "The image is not base64.", "Send the bytes of an image file as base64."
    raise ImageError(what, where="image", fix=fix, code="image-not-base64")


def _require_size(size: tuple[int, int] | None) -> None:
    """Raise ImageError for a picture with too many pixels, or one whose header does not tell its size."""
    if size is None or size[0] * size[1] > MAX_PIXELS:
        told = "is not an image, or its size cannot be told" if size is None else f"has {size[0]} x {size[1]} pixels"
        fix = f"Send an image file of at most {MAX_PIXELS:,} pixels."
        raise ImageError(f"What was sent {told}.", where="image", fix=fix, code="image-size")
