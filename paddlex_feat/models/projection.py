"""Networks with other outputs, for export: features cut to fewer numbers, and those of several poolings."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import paddle
from paddle import nn

from paddlex_feat.models.pooling import Powers, SideBySide
from paddlex_feat.models.recognizer import Recognizer


class ProjectedNeck(nn.Layer):
    """A neck and a fully connected layer behind it: float32 [N, D] -> float32 [N, K].

    Args:
        neck: gives D numbers.
        matrix: float [K, D].
        offset: float [K].
    """

    def __init__(self, neck: nn.Layer, matrix: np.ndarray, offset: np.ndarray):
        super().__init__()
        self.base = neck
        self.projection = nn.Linear(*reversed(matrix.shape))
        self.projection.weight.set_value(np.ascontiguousarray(matrix.T, np.float32))
        self.projection.bias.set_value(offset.astype(np.float32))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, D] -> float32 [N, K]."""
        return self.projection(self.base(x))


def project(network: Recognizer, matrix: np.ndarray, offset: np.ndarray) -> Recognizer:
    """Return a network without head whose features are matrix @ x + offset of those of `network`, whose layers it uses.

    Args:
        network: gives D numbers.
        matrix: float [K, D].
        offset: float [K].
    """
    return Recognizer(network.backbone, ProjectedNeck(network.neck, matrix, offset), None)


def pooled_by(network: Recognizer, exponents: Sequence[float]) -> Recognizer:
    """Return a network without head that gives the features by several exponents of GeM, float32 [N, P * D].

    `network`, which has GeM and whose layers it uses, is not to be used any more.
    """
    network.backbone.pool = Powers(exponents)
    return Recognizer(network.backbone, SideBySide(network.neck, exponents), None)
