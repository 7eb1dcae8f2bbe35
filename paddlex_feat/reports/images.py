"""Small images for reports, and images as data URIs."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np

from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.errors import ImageError

_THUMBNAIL_SIDE = 112  # pixels


def small_image(path: str | Path, height: int, width: int) -> np.ndarray | None:
    """The image scaled to fit into a box: uint8 [h, w, 3], RGB; None if it cannot be decoded."""
    try:
        image = read_rgb(path, lambda w, h: w >= width or h >= height, warnings=[])  # damage is reported elsewhere
    except ImageError:
        return None
    scale = min(height / image.shape[0], width / image.shape[1])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def thumbnail_uri(path: str | Path) -> str:
    """A thumbnail of an image file as a data URI; "" if it cannot be decoded."""
    image = small_image(path, _THUMBNAIL_SIDE, 3 * _THUMBNAIL_SIDE)
    return "" if image is None else jpeg_uri(image)


def jpeg_uri(image: np.ndarray) -> str:
    """An image, uint8 [h, w, 3], RGB, as a data URI."""
    data = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, 80])[1]
    return data_uri(data.tobytes(), "image/jpeg")


def png_uri(file: Path) -> str:
    """A PNG file as a data URI."""
    return data_uri(file.read_bytes(), "image/png")


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a data URI."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"
