"""Operators on maps with channels last, float32 [N, H, W, C], for training on a CPU.

Paddle 3.3 adds up over the middle axes of a tensor ten times slower than over the last; a matrix product does it fast.
"""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn
from paddle.autograd import PyLayer


def put_channels_last(*parts: nn.Layer) -> None:
    """Let all convolutions and BatchNorm layers within parts of a network take and give [N, H, W, C]."""
    for layer in (layer for part in parts for layer in part.sublayers()):
        if isinstance(layer, (nn.Conv2D, nn.BatchNorm2D)):
            layer._data_format = "NHWC"


def pixel_mean(x: paddle.Tensor) -> paddle.Tensor:
    """Mean over the pixels of each image, [N, H, W, C] -> [N, 1, 1, C]."""
    images, height, width, channels = x.shape
    pixels = height * width
    return _pixel_sum(x.reshape([images, pixels, channels]), 1 / pixels).reshape([images, 1, 1, channels])


def scale_channels(x: paddle.Tensor, factor: paddle.Tensor) -> paddle.Tensor:
    """X times factor, [N, 1, 1, C]."""
    y: paddle.Tensor = _Scale.apply(x, factor)
    return y


def _pixel_sum(x: paddle.Tensor, factor: float = 1.0) -> paddle.Tensor:
    """Factor times the sum over the pixels, [N, P, C] -> [N, 1, C]."""
    return paddle.matmul(paddle.full([1, x.shape[1]], factor, "float32"), x)


class _Scale(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, factor: paddle.Tensor) -> paddle.Tensor:
        ctx.save_for_backward(x, factor)
        return x * factor.expand_as(x)  # Paddle 3.3 takes ten times as long for what it broadcasts itself

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        x, factor = ctx.saved_tensor()
        products = (gradient * x).reshape([x.shape[0], -1, x.shape[-1]])
        return gradient * factor.expand_as(x), _pixel_sum(products).reshape(factor.shape)
