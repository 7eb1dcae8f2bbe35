"""Pooling of the last map of a convolutional backbone."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

_SMALLEST = 1e-6  # below it a power has no finite gradient
_SCRATCH = 3.0
_MEAN = 1.0


class GeM(nn.Layer):
    """Generalised mean of each channel (Radenovic et al., arXiv:1711.02512): (mean of x^p)^(1/p), with p trained.

    p = 1 is the mean, a large p the maximum. The map should have no negative values; they count as 1e-6.

    forward: float32 [N, C, H, W] -> float32 [N, C, 1, 1].
    """

    def __init__(self) -> None:
        super().__init__()
        self.p = self.create_parameter([1], default_initializer=nn.initializer.Constant(_SCRATCH))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, C, H, W] -> float32 [N, C, 1, 1]."""
        powers = F.adaptive_avg_pool2d(paddle.pow(x.clip(min=_SMALLEST), self.p), 1)
        return paddle.pow(powers, 1 / self.p)


def pooling(kind: str) -> nn.Layer:
    """Build "mean" or "gem"; "mean" has no parameters, so weight files stay as they are."""
    return GeM() if kind == "gem" else nn.AdaptiveAvgPool2D(1)


def adapt_pooling(layer: nn.Layer, state: dict[str, Any], name: str) -> None:
    """Where weights were trained with the mean, add the exponent that gives the same features: p = 1.

    Args:
        layer: what pools.
        state: arrays of a weight file by name, changed in place.
        name: of the layer in it, with a dot at its end.
    """
    if isinstance(layer, GeM):
        state.setdefault(f"{name}p", np.full(1, _MEAN, np.float32))
