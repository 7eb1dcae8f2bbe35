"""Layers of a transformer, by Paddle's operators or in training on a CPU by compiled loops.

Paddle 3.3 takes half of a training step of CLIP's tower for what is not a large matrix product: attention, and
gradients of biases, of LayerNorm and of GELU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import paddle
from paddle import nn

from paddlex_feat.models.attention import attention

if TYPE_CHECKING:
    from paddlex_feat.models.compiled_kernels import Loops


class Linear(nn.Linear):
    """A linear layer with bias: float32 [..., D] -> float32 [..., E]."""

    loops: Loops | None = None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [..., D] -> float32 [..., E]."""
        if self.loops is None or not _fits(x, self.weight, self.bias):
            return nn.Linear.forward(self, x)
        from paddlex_feat.models.compiled_tokens import LinearRows  # with Numba, which nothing else needs

        rows = LinearRows.apply(x.reshape([-1, x.shape[-1]]), self.weight, self.bias, self.loops)
        return rows.reshape([*x.shape[:-1], rows.shape[-1]])


class LayerNorm(nn.LayerNorm):
    """LayerNorm over the last axis."""

    loops: Loops | None = None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [..., D] -> float32 of the same shape."""
        if self.loops is None or not _fits(x, self.weight, self.bias):
            return nn.LayerNorm.forward(self, x)
        from paddlex_feat.models.compiled_tokens import NormalizedRows

        y: paddle.Tensor = NormalizedRows.apply(x, self.weight, self.bias, self._epsilon, self.loops)
        return y


class GELU(nn.GELU):
    """The exact GELU (Hendrycks and Gimpel, arXiv:1606.08415)."""

    loops: Loops | None = None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 -> float32 of the same shape."""
        if self.loops is None or not _fits(x):
            return nn.GELU.forward(self, x)
        from paddlex_feat.models.compiled_tokens import ExactGELU

        y: paddle.Tensor = ExactGELU.apply(x, self.loops)
        return y


@paddle.jit.not_to_static
def heads_attention(x: paddle.Tensor, loops: Loops | None) -> paddle.Tensor:
    """Scaled dot-product attention of queries, keys and values, x [N, T, 3, H, D] -> [N, T, H, D]."""
    if loops is None or not _fits(x):
        return attention(*x.unbind(2))
    from paddlex_feat.models.compiled_tokens import HeadsAttention

    y: paddle.Tensor = HeadsAttention.apply(x, loops)
    return y


def use_loops(model: nn.Layer, loops: Loops) -> None:
    """Let the layers of this module within a network compute by compiled loops in training."""
    for layer in model.sublayers():
        if hasattr(layer, "loops"):
            object.__setattr__(layer, "loops", loops)


def agrees(loops: Loops) -> bool:
    """Do the loops give the outputs and gradients of Paddle's operators on a few rows?"""
    return all(_agree(layer, loops) for layer in (Linear(48, 144), LayerNorm(48), GELU(), _TwoHeads()))


class _TwoHeads(nn.Layer):
    loops: Loops | None = None

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return heads_attention(x.reshape([2, 5, 3, 2, 8]), self.loops)


def _agree(layer: nn.Layer, loops: Loops) -> bool:
    x, results = np.random.default_rng(0).normal(0, 3, (2, 5, 48)).astype(np.float32), []
    for used in (None, loops):
        object.__setattr__(layer, "loops", used)
        layer.clear_gradients()
        given = paddle.to_tensor(x, stop_gradient=False)
        y = layer(given * 1)
        (y * y).sum().backward()
        results.append([t.numpy() for t in (y, given.grad, *(p.grad for p in layer.parameters()))])
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*results, strict=True))


@paddle.jit.not_to_static
def _fits(*tensors: paddle.Tensor) -> bool:
    """Whether the loops are for this: a training step in float32, in which all of these learn."""
    return (
        paddle.in_dynamic_mode()
        and paddle.is_grad_enabled()
        and all(tensor.dtype == paddle.float32 and not tensor.stop_gradient for tensor in tensors)
    )
