"""OpenCV, checked and with the limit of pixels: all modules of the package take `cv2` from here.

Raises:
    DependencyError: OpenCV is missing or damaged.
"""

from __future__ import annotations

from paddlex_feat.data.images.limits import limit_for_opencv
from paddlex_feat.runtime.opencv import require_opencv

with limit_for_opencv():
    require_opencv()  # imports it

import cv2

__all__ = ["cv2"]
