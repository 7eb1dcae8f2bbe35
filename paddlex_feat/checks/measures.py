"""Measures of a picture that a person sees at once: how sharp, how bright, how much is in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from paddlex_feat.data.images.opencv import cv2

_LEVELS = np.arange(256.0)
SIDE = 128  # px of the shorter side that is measured, up to twice as many: about what networks see


class Measures(NamedTuple):
    """Measures of one picture.

    Attributes:
        sharpness: variance of the Laplacian (Pech-Pacheco et al., ICPR 2000), in squared grey levels.
        brightness: mean grey level, 0 to 255.
        information: entropy of the grey levels in bits, 0 to 8.
    """

    sharpness: float
    brightness: float
    information: float


def measure(grey: np.ndarray) -> Measures:
    """Measure a picture by its brightness, uint8 [H, W]."""
    step = max(1, min(grey.shape) // SIDE)
    some = np.ascontiguousarray(grey[::step, ::step])
    _, deviation = cv2.meanStdDev(cv2.Laplacian(some, cv2.CV_16S))
    counts = cv2.calcHist([some], [0], None, [256], [0, 256]).ravel()
    shares = counts[counts > 0] / some.size
    information = float(-(shares * np.log2(shares)).sum())
    brightness = float(counts @ _LEVELS) / some.size
    return Measures(round(float(deviation[0, 0]) ** 2, 3), round(brightness, 2), round(information, 3))
