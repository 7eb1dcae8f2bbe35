"""Measures of a picture that a person sees at once: how sharp, how bright, how much is in it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from paddlex_feat.data.images.opencv import cv2

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


def measure(image: np.ndarray) -> Measures:
    """Measure a picture, uint8 [H, W, 3], BGR or RGB, by its green channel, which is most of its brightness."""
    step = max(1, min(image.shape[:2]) // SIDE)
    grey = np.ascontiguousarray(image[::step, ::step, 1])
    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    counts = np.bincount(grey.ravel(), minlength=256)
    shares = counts[counts > 0] / grey.size
    information = float(-(shares * np.log2(shares)).sum())
    return Measures(round(float(deviation[0, 0]) ** 2, 3), round(float(grey.mean()), 2), round(information, 3))
