"""Layers of a transformer whose gradients are compiled loops, for training on a CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from paddlex_feat.models import compiled_kernels as kernels
from paddlex_feat.models.compiled_kernels import Loops


class LinearRows(PyLayer):
    """x [R, D] times weight [D, E], plus bias [E]."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, loops: Loops) -> paddle.Tensor:
        """[R, E]."""
        y = paddle.matmul(x, weight)
        loops.run(kernels.add_row, _array(y), _array(bias))
        ctx.save_for_backward(x, weight)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        """Gradients of x, weight and bias."""
        x, weight = ctx.saved_tensor()
        of_bias = paddle.matmul(paddle.ones([1, len(gradient)]), gradient).flatten()
        of_weight = paddle.matmul(x, gradient, transpose_x=True)
        return paddle.matmul(gradient, weight, transpose_y=True), of_weight, of_bias


class NormalizedRows(PyLayer):
    """LayerNorm over the last axis of x; its gradient as in J. L. Ba et al., arXiv:1607.06450."""

    @staticmethod
    def forward(ctx: Any, x: Any, weight: Any, bias: Any, epsilon: float, loops: Loops) -> paddle.Tensor:
        """Of the shape of x."""
        ctx.save_for_backward(x, weight)
        ctx.rest = epsilon, loops
        y: paddle.Tensor = F.layer_norm(x, weight.shape, weight, bias, epsilon)
        return y

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> tuple[paddle.Tensor, ...]:
        """Gradients of x, weight and bias."""
        (x, weight), (epsilon, loops) = ctx.saved_tensor(), ctx.rest
        x, out = x.contiguous(), paddle.empty_like(x)
        given, of_y = (_array(tensor).reshape(-1, x.shape[-1]) for tensor in (x, gradient.contiguous()))
        rows, blocks = kernels.blocks_of(*given.shape)
        parts = np.empty((blocks, 2, given.shape[1]), np.float32)
        arrays = _array(weight), np.float32(epsilon), rows, parts, _array(out).reshape(given.shape)
        loops.run(kernels.layer_norm_gradients, given, of_y, *arrays)
        of_weight, of_bias = (paddle.to_tensor(each) for each in parts.sum(axis=0, dtype=np.float64).astype(np.float32))
        return out, of_weight, of_bias


class ExactGELU(PyLayer):
    """x times the normal distribution's share below x."""

    @staticmethod
    def forward(ctx: Any, x: Any, loops: Loops) -> paddle.Tensor:
        """Of the shape of x."""
        x = x.contiguous()
        y = paddle.empty_like(x)
        loops.run(kernels.gelu, _array(x).ravel(), _array(y).ravel())
        ctx.save_for_backward(x)
        ctx.loops = loops
        return y

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        """The gradient of x."""
        (x,) = ctx.saved_tensor()
        out = paddle.empty_like(x)
        ctx.loops.run(kernels.gelu_gradient, *(_array(t).ravel() for t in (x, gradient.contiguous(), out)))
        return out


class HeadsAttention(PyLayer):
    """softmax(Q K^T / sqrt(D)) V for each head of x [N, T, 3, H, D], which holds Q, K and V.

    Paddle multiplies the small matrices of the heads at a sixth of the rate of large ones. Here each thread takes
    images of its own, with a BLAS of one thread.
    """

    @staticmethod
    def forward(ctx: Any, x: Any, loops: Loops) -> paddle.Tensor:
        """[N, T, H, D]."""
        x = x.contiguous()
        images, tokens, _, heads, dim = x.shape
        y, weights = paddle.empty([images, tokens, heads, dim]), np.empty((images, heads, tokens, tokens), np.float32)
        given, out, scale = _array(x), _array(y), np.float32(dim**-0.5)

        def image(n: int) -> None:
            for h in range(heads):
                q, k, v = (given[n, :, part, h] for part in range(3))
                kernels.softmax_rows(np.matmul(q, k.T, out=weights[n, h]), scale)
                out[n, :, h] = weights[n, h] @ v

        loops.each(image, images)
        ctx.save_for_backward(x)
        ctx.rest = weights, scale, loops
        return y

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        """The gradient of x."""
        (x,), (weights, scale, loops) = ctx.saved_tensor(), ctx.rest
        result = paddle.empty_like(x)
        given, of_y, out = _array(x), _array(gradient.contiguous()), _array(result)

        def image(n: int) -> None:
            for h in range(given.shape[3]):
                q, k, v = (given[n, :, part, h] for part in range(3))
                g, share = of_y[n, :, h], weights[n, h]
                out[n, :, 2, h] = share.T @ g
                of_scores = g @ v.T
                kernels.softmax_gradient(share, scale, of_scores)
                out[n, :, 0, h] = of_scores @ k
                out[n, :, 1, h] = of_scores.T @ q

        loops.each(image, len(given))
        return result


def _array(tensor: paddle.Tensor) -> np.ndarray:
    """The memory of a tensor on the CPU."""
    array: np.ndarray = np.from_dlpack(tensor.detach())
    return array
