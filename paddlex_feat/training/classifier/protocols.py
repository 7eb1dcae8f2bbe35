"""What a training and its checkpoints ask of a classifier, on a CPU or on GPUs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import paddle

from paddlex_feat.training.classifier.part import Part


class Rows(Protocol):
    """Class vectors of one process, as a checkpoint sees them."""

    @property
    def centers(self) -> int:
        """K, vectors of each class."""

    @property
    def dim(self) -> int:
        """Numbers of a vector."""

    @property
    def names(self) -> list[str]:
        """Of the arrays, "weight" and the optimizer's states, float32 [classes * K, D] each."""

    def chunk(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of an array."""

    def set_chunk(self, name: str, start: int, rows: np.ndarray) -> None:
        """Replace some rows of an array."""


class Classifier(Protocol):
    """What a training asks of SampledClassifier and GpuClassifier, which say what each does."""

    steps: int
    part: Part

    @property
    def rows(self) -> Rows:
        """The class vectors of this process."""

    def draw(self, labels: Sequence[np.ndarray]) -> None:
        """Draw the classes of a step."""

    def loss(self, features: paddle.Tensor, labels: paddle.Tensor, smoothing: float) -> paddle.Tensor:
        """Cross-entropy over the classes drawn."""

    def update(self, rate: float) -> None:
        """Change the class vectors drawn."""

    def set_class_means(self, means: np.ndarray) -> None:
        """Start at the classes' mean features."""
