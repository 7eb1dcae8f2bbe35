"""Pooling of the last map of a convolutional backbone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

_SMALLEST = 1e-6  # below it a power has no finite gradient
_SCRATCH = 3.0
_MEAN = 1.0
EXPONENTS = (_MEAN, 4.0)  # that a start with the mean is compared by; docs/adaptation.md has the figures


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
        return _power_mean(x, self.p)


class Powers(nn.Layer):
    """GeM by several fixed exponents, as a batch of all images for each.

    forward: float32 [N, C, H, W] -> float32 [P * N, C, 1, 1].
    """

    def __init__(self, exponents: Sequence[float]):
        super().__init__()
        self.exponents = tuple(exponents)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, C, H, W] -> float32 [P * N, C, 1, 1]."""
        return paddle.concat([_power_mean(x, exponent) for exponent in self.exponents])


class SideBySide(nn.Layer):
    """A neck, and what it gives for each exponent of `Powers` beside each other.

    forward: float32 [P * N, C] -> float32 [N, P * D].
    """

    def __init__(self, neck: nn.Layer, exponents: Sequence[float]):
        super().__init__()
        self.base = neck
        self.count = len(exponents)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [P * N, C] -> float32 [N, P * D]."""
        rows = self.base(x)
        return rows.reshape([self.count, -1, rows.shape[-1]]).transpose([1, 0, 2]).flatten(1)


def _power_mean(x: paddle.Tensor, exponent: paddle.Tensor | float) -> paddle.Tensor:
    powers = F.adaptive_avg_pool2d(paddle.pow(x.clip(min=_SMALLEST), exponent), 1)
    return paddle.pow(powers, 1 / exponent)


def compared_exponents(own: np.ndarray | None) -> tuple[float, ...]:
    """The exponents that are compared before a training or adaptation, the network's own first; none without GeM.

    Args:
        own: the network's exponent, float32 [1]; None: it has no GeM. One that was trained is not compared.
    """
    if own is None:
        return ()
    return EXPONENTS if float(own[0]) == _MEAN else (float(own[0]),)


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
