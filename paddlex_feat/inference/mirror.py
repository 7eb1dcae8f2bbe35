"""Features averaged over an image and its mirror image."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.inference.extractor import unit_rows


class _Extractor(Protocol):
    @property
    def preprocess(self) -> Preprocess: ...

    def __call__(self, images: np.ndarray) -> np.ndarray: ...


class MirrorAverage:
    """Pixels to unit(mean of unit(f(image)), unit(f(mirrored image))), at twice the cost of f.

    Args:
        extract: f, pixels to features.
    """

    def __init__(self, extract: _Extractor):
        self._extract = extract

    @property
    def preprocess(self) -> Preprocess:
        """How the images are made ready, as for `extract`."""
        return self._extract.preprocess

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3], RGB, already resized -> float32 [N, D], rows of unit length.

        The two halves are computed one after the other, so that a batch takes no more memory. Features that are
        opposite to each other give a row of zeros.
        """
        mirrored = np.ascontiguousarray(images[:, :, ::-1])
        return unit_rows((unit_rows(self._extract(images)) + unit_rows(self._extract(mirrored))) / 2)
