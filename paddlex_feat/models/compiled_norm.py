"""BatchNorm, sum of branches and activation as compiled loops that write no map in between, with their gradients.

With a = weight / sqrt(variance + epsilon) and the statistics of the batch, y = limit(sum_m a_m x_m + b); the gradients
are those of S. Ioffe and C. Szegedy, arXiv:1502.03167, section 3.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer

from paddlex_feat.models import compiled_kernels as kernels
from paddlex_feat.models.compiled_kernels import Loops

_INFINITE = np.float32(math.inf)


@dataclass
class _Saved:
    """Of a forward pass, for the gradients.

    Attributes:
        scales, means, inverses: of each map, float32 [M, C].
        shift: float32 [C].
        of_batch: whether each map's statistics are those of the batch.
    """

    scales: np.ndarray
    means: np.ndarray
    inverses: np.ndarray
    shift: np.ndarray
    of_batch: list[bool]


class NormalizedSum(PyLayer):
    """The activation of the sum of maps [N, H, W, C], each after its BatchNorm."""

    @staticmethod
    def forward(
        ctx: Any, norms: list[nn.BatchNorm2D], least: float, most: float, loops: Loops, *given: paddle.Tensor
    ) -> Any:
        """`given` are the maps, then weight and bias of each norm; least and most limit the sum."""
        tensors = [tensor.contiguous() for tensor in given[: len(norms)]]
        maps = [_rows(tensor) for tensor in tensors]
        saved = _statistics(maps, norms, loops)
        y = paddle.empty_like(tensors[0])
        limits = np.float32(least), np.float32(most)
        rest = (saved.shift, *limits, kernels.blocks_of(*maps[0].shape)[0], _rows(y))
        if len(maps) == 1:
            loops.run(kernels.limit_affine, maps[0], saved.scales[0], *rest)
        else:
            scales = np.concatenate([saved.scales, np.zeros_like(saved.scales)])[:3]
            loops.run(kernels.limit_affine_sum, *(maps + maps[-1:])[:3], scales, *rest)
        ctx.save_for_backward(*tensors, *([y] if len(maps) > 1 else []))
        ctx.rest = saved, limits, [tensor.stop_gradient for tensor in tensors], loops
        return y

    @staticmethod
    @np.errstate(all="ignore")
    def backward(ctx: Any, gradient: paddle.Tensor) -> Any:
        """Gradients of the maps, then of weight and bias of each norm."""
        tensors, (saved, (least, most), constant, loops) = ctx.saved_tensor(), ctx.rest
        of_y, maps = _rows(gradient.contiguous()), [_rows(tensor) for tensor in tensors]
        rows, blocks = kernels.blocks_of(*of_y.shape)
        limits = [(saved.scales[0], saved.shift, least, most)]
        if len(maps) > 1:
            passed = np.empty_like(of_y)
            loops.run(kernels.within_limits, maps.pop(), least, most, of_y, rows, passed)
            of_y, zeros = passed, np.zeros_like(saved.shift)
            limits = [(zeros, zeros, -_INFINITE, _INFINITE)] * len(maps)
        of_maps: list[paddle.Tensor | None] = []
        of_parameters: list[paddle.Tensor] = []
        parts = np.empty((blocks, 2, of_y.shape[1]), np.float32)
        for number, (x, limit) in enumerate(zip(maps, limits, strict=True)):
            scale, mean, inverse = saved.scales[number], saved.means[number], saved.inverses[number]
            loops.run(kernels.sum_gradients, x, *limit, of_y, mean, rows, parts)
            of_bias, along = parts.sum(axis=0, dtype=np.float64)
            of_weight = along * inverse
            share = -scale / len(x) if saved.of_batch[number] else np.zeros_like(scale)
            slope = share * inverse * of_weight
            offset = (share * of_bias - slope * mean).astype(np.float32)
            of_parameters += [paddle.to_tensor(each.astype(np.float32)) for each in (of_weight, of_bias)]
            of_maps.append(None if constant[number] else paddle.empty_like(tensors[number]))
            if of_maps[-1] is not None:
                given = (of_y, scale, slope.astype(np.float32), offset, rows, _rows(of_maps[-1]))
                loops.run(kernels.map_gradient, x, *limit, *given)
        return (*of_maps, *of_parameters)


def _rows(tensor: paddle.Tensor) -> np.ndarray:
    """The memory of a contiguous tensor [N, H, W, C] as an array [N H W, C]."""
    array: np.ndarray = np.from_dlpack(tensor.detach())
    return array.reshape(-1, array.shape[-1])


@np.errstate(all="ignore")  # overflows make the loss NaN, and that ends the run with a clear error
def _statistics(maps: list[np.ndarray], norms: list[nn.BatchNorm2D], loops: Loops) -> _Saved:
    means, variances, of_batch = [], [], []
    for x, norm in zip(maps, norms, strict=True):
        of_batch.append(norm.training and not norm._use_global_stats)
        of_run: list[np.ndarray] = [np.from_dlpack(tensor.detach()) for tensor in (norm._mean, norm._variance)]
        of_map = _moments(x, loops) if of_batch[-1] else of_run
        if of_batch[-1]:
            for kept, new in zip(of_run, of_map, strict=True):
                kept *= np.float32(norm._momentum)
                kept += ((1 - norm._momentum) * new).astype(np.float32)
        means.append(of_map[0])
        variances.append(of_map[1] + norm._epsilon)
    inverses = 1 / np.sqrt(np.array(variances))
    weights, biases = (
        np.array([np.from_dlpack(getattr(norm, name).detach()) for norm in norms]) for name in ("weight", "bias")
    )
    scales = weights * inverses
    shift = (biases - scales * means).sum(axis=0)
    single = np.float32
    return _Saved(
        scales.astype(single), np.array(means, single), inverses.astype(single), shift.astype(single), of_batch
    )


def _moments(x: np.ndarray, loops: Loops) -> list[np.ndarray]:
    """Mean and variance of each column of x [R, C], float64 [C]."""
    rows, blocks = kernels.blocks_of(*x.shape)
    pivot, sums = x[0].copy(), np.empty((blocks, 2, x.shape[1]), np.float32)  # large means would cancel digits
    loops.run(kernels.sum_powers, x, pivot, rows, sums)
    first, second = sums.sum(axis=0, dtype=np.float64) / len(x)
    return [pivot + first, np.maximum(second - first * first, 0)]
