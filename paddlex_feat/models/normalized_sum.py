"""BatchNorm, sum of branches and activation, by Paddle's operators or in training on a CPU by compiled loops."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

if TYPE_CHECKING:
    from paddlex_feat.models.compiled_kernels import Loops


class Limits(NamedTuple):
    """What an activation limits its input to."""

    least: float
    most: float


NONE, RELU, RELU6 = Limits(-math.inf, math.inf), Limits(0.0, math.inf), Limits(0.0, 6.0)


@paddle.jit.not_to_static  # a captured graph has Paddle's operators, and nothing to translate here
def normalized_sum(
    maps: Sequence[paddle.Tensor], norms: Sequence[nn.BatchNorm2D], limits: Limits = RELU
) -> paddle.Tensor:
    """The activation of the sum of maps, each after its BatchNorm.

    Args:
        maps: of one shape: float32 [N, C, H, W], or [N, H, W, C] where the norms are so.
        norms: one for each map.
        limits: the activation.
    """
    loops: Loops | None = getattr(norms[0], "loops", None)
    if loops is not None and _fits(maps, norms):
        parameters = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
        from paddlex_feat.models.compiled_norm import NormalizedSum  # with Numba, which nothing else needs

        y: paddle.Tensor = NormalizedSum.apply(list(norms), *limits, loops, *maps, *parameters)
        return y
    total = norms[0](maps[0])
    for x, norm in zip(maps[1:], norms[1:], strict=True):
        total = total + norm(x)
    if limits == RELU:  # in place: no gradient needs its input
        return F.relu_(total) if paddle.in_dynamic_mode() else F.relu(total)
    return F.relu6(total) if limits == RELU6 else total


def compile_norms(model: nn.Layer, loops: Loops) -> None:
    """Let the BatchNorm layers of a network with channels last compute with compiled kernels."""
    for layer in model.sublayers():
        if type(layer) is nn.BatchNorm2D and layer._data_format == "NHWC":
            layer.loops = loops


def agrees(loops: Loops) -> bool:
    """Do the kernels give the outputs, gradients and statistics of Paddle's operators on small maps?"""
    return all(_agree(loops, count, limits) for count, limits in ((1, NONE), (1, RELU6), (3, RELU)))


def _agree(loops: Loops, count: int, limits: Limits) -> bool:
    draw, results = np.random.default_rng(0), []
    maps = [draw.standard_normal((2, 5, 5, 24)).astype(np.float32) for _ in range(count)]
    for kernels in (False, True):
        norms = [nn.BatchNorm2D(maps[0].shape[-1], data_format="NHWC") for _ in maps]
        if kernels:
            for norm in norms:
                norm.loops = loops
        inputs = [paddle.to_tensor(array, stop_gradient=False) for array in maps]
        y = normalized_sum(inputs, norms, limits)
        (y * y).sum().backward()
        parameters = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
        statistics = [tensor for norm in norms for tensor in (norm._mean, norm._variance)]
        results.append([t.numpy() for t in (y, *(t.grad for t in (*inputs, *parameters)), *statistics)])
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*results, strict=True))


def _fits(maps: Sequence[paddle.Tensor], norms: Sequence[nn.BatchNorm2D]) -> bool:
    """Whether the kernels are for this: a training step in float32."""
    return (
        paddle.in_dynamic_mode()
        and paddle.is_grad_enabled()
        and all(x.dtype == paddle.float32 for x in maps)
        and all(norm.weight is not None and not norm.weight.stop_gradient for norm in norms)
    )
