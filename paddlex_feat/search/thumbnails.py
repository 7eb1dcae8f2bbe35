"""Small pictures of the images of a gallery, for pages that show answers."""

from __future__ import annotations

import numpy as np

from paddlex_feat.data.images.opencv import cv2

SIDE = 128  # pixels of the longer side at most
_QUALITY = 80


def thumbnail(image: np.ndarray) -> bytes:
    """A JPEG of an image, uint8 [H, W, 3] in BGR order, with its longer side at most SIDE."""
    height, width = image.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = image if scale == 1.0 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    encoded: np.ndarray = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1]
    return encoded.tobytes()
