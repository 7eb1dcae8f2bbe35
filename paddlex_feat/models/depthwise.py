"""Gradients of depthwise weights with channels last by compiled loops, for training on a CPU.

oneDNN 3.6 takes ten times as long for a kernel of 5 x 5: that was a quarter of a training step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
from paddle.autograd import PyLayer

if TYPE_CHECKING:
    from paddlex_feat.models.compiled_kernels import Loops

_SHARES = 8  # of the images; more threads than that have nothing to do


def takes(conv: paddle.nn.Conv2D) -> bool:
    """Whether `add_weight_gradient` is for a convolution: depthwise, its kernel larger than 3 x 3."""
    channels, _, height, width = conv.weight.shape
    plain = conv._dilation == [1, 1] and conv._stride[0] == conv._stride[1]
    return bool(conv._groups == channels and height == width > 3 and plain)


def add_weight_gradient(y: paddle.Tensor, x: paddle.Tensor, conv: paddle.nn.Conv2D, loops: Loops) -> paddle.Tensor:
    """Return y, whose gradient becomes one of the weights too.

    Args:
        y: float32 [N, H', W', C], the convolution of x by weights that were taken for constants.
        x: float32 [N, H, W, C].
        conv: of the weights, float32 [C, 1, k, k].
        loops: that compute.
    """
    before = int(np.ravel(conv._updated_padding)[0])
    z: paddle.Tensor = _WeightGradient.apply(y, conv.weight, x.detach(), before, conv._stride[0], loops)
    return z


class _WeightGradient(PyLayer):
    @staticmethod
    def forward(ctx: Any, y: Any, weight: Any, x: Any, before: int, stride: int, loops: Loops) -> paddle.Tensor:
        ctx.save_for_backward(x)
        ctx.rest = (weight.shape, y.stop_gradient, before, stride, loops)
        return paddle.assign(y) if y.stop_gradient else y  # Paddle gives no gradient to a constant itself

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[paddle.Tensor | None, paddle.Tensor, None]:
        from paddlex_feat.models import compiled_kernels as kernels  # with Numba, which nothing else needs

        (x,), (shape, constant, before, stride, loops) = ctx.saved_tensor(), ctx.rest
        maps = [np.from_dlpack(tensor.contiguous().detach()) for tensor in (x, gradient)]
        lanes, parts = kernels.lanes_of(gradient.shape[2]), np.empty((_SHARES, shape[0], *shape[2:]), np.float32)
        loops.run(kernels.depthwise_weights, *maps, before, stride, lanes, parts)
        out = parts.sum(axis=0)
        return None if constant else gradient, paddle.to_tensor(out.reshape(shape)), None
