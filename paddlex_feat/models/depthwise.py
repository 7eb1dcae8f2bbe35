"""Depthwise convolutions with channels last whose gradients are matrix products, for training on a CPU.

oneDNN 3.6 has a fast gradient of depthwise weights for kernels up to 3 x 3 alone: that of 5 x 5 took a quarter of the
training step of EfficientNet-Lite0. On maps of a few hundred pixels this way needs a third of the time:

    weight   dw[c, i] = sum over n and pixels q of x[n, p, c] dy[n, q, c], where p is the pixel that tap i of the kernel
             reads for output q: for each channel the product x' dy of all pairs of pixels [P, Q], of which a constant
             matrix of zeros and ones adds up the pairs of each tap
    data     the convolution of dy with the kernel turned by 180 degrees
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import paddle
from paddle.autograd import PyLayer

MAX_PIXELS = 256  # of a map; the products grow with its square
Convolve = Callable[[paddle.Tensor, paddle.Tensor], paddle.Tensor]


def takes(conv: paddle.nn.Conv2D) -> bool:
    """Whether `convolve` computes a convolution: depthwise, larger than 3 x 3, the output as large as the input."""
    channels, _, height, width = conv.weight.shape
    padding = np.unique(conv._updated_padding).tolist()  # a number, or one for each side
    keeps_size = height % 2 == 1 and padding == [height // 2] and conv._stride == conv._dilation == [1, 1]
    return bool(conv._groups == channels and height == width > 3 and keeps_size)


def convolve(x: paddle.Tensor, weight: paddle.Tensor, program: Convolve) -> paddle.Tensor:
    """The convolution of x, float32 [N, H, W, C], with weight, float32 [C, 1, k, k]; at most MAX_PIXELS pixels.

    Args:
        x: the maps.
        weight: the kernels, k odd.
        program: computes it, without gradients.
    """
    y: paddle.Tensor = _Depthwise.apply(x, weight, program)
    return y


class _Depthwise(PyLayer):
    @staticmethod
    def forward(ctx: Any, x: paddle.Tensor, weight: paddle.Tensor, program: Convolve) -> paddle.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.program = program
        return program(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor | None]:
        x, weight = ctx.saved_tensor()
        of_x = None if x.stop_gradient else ctx.program(gradient, weight.flip([2, 3]))
        return of_x, None if weight.stop_gradient else _of_weight(x, gradient, weight.shape)


def _of_weight(x: paddle.Tensor, gradient: paddle.Tensor, shape: list[int]) -> paddle.Tensor:
    images, height, width, channels = x.shape
    rows = [tensor.reshape([images, height * width, channels]) for tensor in (x, gradient)]
    pairs = paddle.bmm(rows[0].transpose([2, 1, 0]), rows[1].transpose([2, 0, 1]))  # [C, P, Q]
    taps = paddle.matmul(pairs.reshape([channels, -1]), _taps(height, width, shape[2]))
    return taps.reshape(shape)


@lru_cache(maxsize=16)
def _taps(height: int, width: int, kernel: int) -> paddle.Tensor:
    """Which tap reads pixel p for output q: zeros and ones, float32 [P * Q, kernel * kernel]."""
    y, x = (grid.ravel() for grid in np.mgrid[:height, :width])
    down, right = y[:, None] - y + kernel // 2, x[:, None] - x + kernel // 2  # [P, Q]
    inside = (down >= 0) & (down < kernel) & (right >= 0) & (right < kernel)
    chosen = np.zeros((height * width, height * width, kernel * kernel), np.float32)
    p, q = np.nonzero(inside)
    chosen[p, q, down[p, q] * kernel + right[p, q]] = 1
    return paddle.to_tensor(chosen.reshape(-1, kernel * kernel))
