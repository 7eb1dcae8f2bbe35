"""Pixels to features by an inference directory."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paddlex_feat.inference.engines import create_engine
from paddlex_feat.inference.info import read_info
from paddlex_feat.pipeline.preprocess import Preprocess


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Divide every row by its L2 norm; a zero row stays zero. float32 [N, D] -> float32 [N, D]."""
    # In float64, where no square of a float32 overflows or vanishes.
    norms = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))[:, None]
    return (features / np.where(norms > 0, norms, 1)).astype(np.float32)


class FeatureExtractor:
    """Pixels to features by one inference directory: pre-processing, graph, L2 normalisation.

    Args:
        folder: inference directory.
        unit: give unit rows even if inference.yml does not ask for them.
        device, threads, engine, precision: see `create_engine`.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        threads: int = 0,
        unit: bool = False,
        engine: str = "paddle",
        precision: str = "fp32",
    ):
        self.info = read_info(folder)
        self._unit = unit or self.info.normalise_features
        self.engine = create_engine(folder, engine, device, threads, precision)

    @property
    def preprocess(self) -> Preprocess:
        """How the images are made ready."""
        return self.info.preprocess

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3], RGB, already resized, N at least 1 -> float32 [N, D].

        Rows have unit length if inference.yml asks for NormalizeFeatures, as all of ours do, or `unit` does.
        """
        size = self.engine.piece or len(images)
        pieces = [images[i : i + size] for i in range(0, len(images), size)]
        features = np.concatenate([self.engine.run(self.preprocess.normalise(piece)) for piece in pieces])
        return unit_rows(features) if self._unit else features
