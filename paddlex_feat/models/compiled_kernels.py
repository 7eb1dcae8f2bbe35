"""Loops over maps with channels last, compiled by Numba for the processor at hand, for training on a CPU.

Rows are pixels and columns channels: float32 [R, C]. They are taken in blocks that stay in a processor's cache. What a
block is depends on the shape alone, so the number of threads changes no bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import numba
import numpy as np
from numba import njit, prange

_BLOCK = 2**15  # numbers of a block: few enough for the cache, and not too many blocks to add up
_GATHERED = 128  # channels that are copied together: fewer would read a little of each line of memory
_LINE = 1024  # numbers of a row of pixels that are multiplied at once
_ONE_AT_A_TIME = threading.Lock()  # one of Numba's ways of sharing work ends the process otherwise


def _compiled(function: Callable[..., None], parallel: bool) -> Any:
    """A function that is compiled at its first call, and kept in Numba's cache, where there is one."""
    # Sums may be reordered for vector instructions; infinities and NaN keep their meaning.
    exact_enough = {"contract", "reassoc", "nsz", "arcp"}
    settings: dict[str, Any] = {"parallel": parallel, "nogil": True, "error_model": "numpy", "fastmath": exact_enough}
    try:
        return njit(cache=True, **settings)(function)
    except RuntimeError:  # neither this package's folder nor the user's can be written
        return njit(**settings)(function)


_inner, _parallel = partial(_compiled, parallel=False), partial(_compiled, parallel=True)


class Loops:
    """Runs the kernels on so many threads."""

    def __init__(self, threads: int):
        self._threads = min(threads, numba.get_num_threads())

    def run(self, kernel: Callable[..., None], *given: Any) -> None:
        """Call kernel(*given)."""
        with _ONE_AT_A_TIME:
            numba.set_num_threads(self._threads)  # of the calling thread, so each time
            kernel(*given)


def blocks_of(rows: int, channels: int) -> tuple[int, int]:
    """(rows of a block, number of blocks)."""
    each = max(1, _BLOCK // channels)
    return each, -(-rows // each)


@_parallel
def sum_powers(x, pivot, rows, sums):  # type: ignore[no-untyped-def]
    """Write sums of x - pivot and of its square over the rows of each block into sums [blocks, 2, C]."""
    for block in prange(len(sums)):
        total, square = sums[block, 0], sums[block, 1]
        total[:] = 0
        square[:] = 0
        for row in range(block * rows, min(len(x), (block + 1) * rows)):
            for c in range(x.shape[1]):
                difference = x[row, c] - pivot[c]
                total[c] += difference
                square[c] += difference * difference


@_parallel
def limit_affine(x, scale, shift, least, most, rows, y):  # type: ignore[no-untyped-def]
    """Write x * scale + shift, limited to least and most, into y [R, C]."""
    for block in prange(-(-len(x) // rows)):
        for row in range(block * rows, min(len(x), (block + 1) * rows)):
            for c in range(x.shape[1]):
                value = x[row, c] * scale[c] + shift[c]
                y[row, c] = least if value < least else (most if value > most else value)  # NaN stays


@_parallel
def limit_affine_sum(x0, x1, x2, scales, shift, least, most, rows, y):  # type: ignore[no-untyped-def]
    """As `limit_affine`, of the sum of three maps, each times its row of scales [3, C]."""
    for block in prange(-(-len(x0) // rows)):
        for row in range(block * rows, min(len(x0), (block + 1) * rows)):
            for c in range(x0.shape[1]):
                value = x0[row, c] * scales[0, c] + x1[row, c] * scales[1, c] + x2[row, c] * scales[2, c] + shift[c]
                y[row, c] = least if value < least else (most if value > most else value)


@_parallel
def within_limits(y, least, most, gradient, rows, passed):  # type: ignore[no-untyped-def]
    """Write the gradient where y is within its limits, else 0, into passed [R, C]."""
    for block in prange(-(-len(y) // rows)):
        for row in range(block * rows, min(len(y), (block + 1) * rows)):
            for c in range(y.shape[1]):
                passed[row, c] = gradient[row, c] if least < y[row, c] < most else np.float32(0)


@_parallel
def sum_gradients(x, scale, shift, least, most, gradient, mean, rows, sums):  # type: ignore[no-untyped-def]
    """Write sums over each block of the gradient g before the limits, and of g (x - mean): sums [blocks, 2, C]."""
    for block in prange(len(sums)):
        total, along = sums[block, 0], sums[block, 1]
        total[:] = 0
        along[:] = 0
        for row in range(block * rows, min(len(x), (block + 1) * rows)):
            for c in range(x.shape[1]):
                g = gradient[row, c] if least < x[row, c] * scale[c] + shift[c] < most else np.float32(0)
                total[c] += g
                along[c] += g * (x[row, c] - mean[c])


@_parallel
def map_gradient(x, scale, shift, least, most, gradient, factor, slope, offset, rows, out):  # type: ignore[no-untyped-def]
    """Write g factor + x slope + offset into out [R, C], with g as in `sum_gradients`."""
    for block in prange(-(-len(x) // rows)):
        for row in range(block * rows, min(len(x), (block + 1) * rows)):
            for c in range(x.shape[1]):
                g = gradient[row, c] if least < x[row, c] * scale[c] + shift[c] < most else np.float32(0)
                out[row, c] = g * factor[c] + (x[row, c] * slope[c] + offset[c])


@_inner
def _add_products(sums, a, b):  # type: ignore[no-untyped-def]
    for k in range(len(sums)):
        sums[k] += a[k] * b[k]


def lanes_of(width: int) -> int:
    """Channels that `depthwise_weights` multiplies together, for maps of so many columns."""
    return max(16, min(_GATHERED, _LINE // width) // 16 * 16)


@_inner
def _gather(image, first, before, stride, rows, columns, out):  # type: ignore[no-untyped-def]
    """Copy channels from `first` on of an image [H, W, C] into out [pieces, stride, rows, columns / stride * lanes].

    Every stride-th column lies by itself, so that those of one tap of a kernel are side by side. The image begins after
    `before` rows and columns; `columns` of them are read, with those before.
    """
    lanes = out.shape[3] // -(-columns // stride)
    for i in range(min(len(image), rows - before)):
        for j in range(min(image.shape[1], columns - before)):
            phase, at = (j + before) % stride, (j + before) // stride * lanes
            for piece in range(len(out)):
                channel = first + piece * lanes
                for c in range(min(lanes, image.shape[2] - channel)):
                    out[piece, phase, i + before, at + c] = image[i, j, channel + c]


@_inner
def _add_taps(lines, padded, stride, lanes, sums):  # type: ignore[no-untyped-def]
    """Add products of an output's gradient [rows, n] and the pixels that each tap reads to sums [k, k, n]."""
    for i in range(len(lines)):
        for tap in range(len(sums)):
            for across in range(len(sums)):
                start = across // stride * lanes
                pixels = padded[across % stride, i * stride + tap, start : start + lines.shape[1]]
                _add_products(sums[tap, across], lines[i], pixels)


@_inner
def _add_columns(sums, lanes, out):  # type: ignore[no-untyped-def]
    """Write sums over the columns, of sums [pieces, k, k, columns * lanes], into out [C, k, k]."""
    for channel in range(len(out)):
        piece, c = channel // lanes, channel % lanes
        for tap in range(out.shape[1]):
            for across in range(out.shape[1]):
                total = np.float32(0)
                for at in range(c, sums.shape[3], lanes):
                    total += sums[piece, tap, across, at]
                out[channel, tap, across] = total


@_parallel
def depthwise_weights(x, gradient, before, stride, lanes, parts):  # type: ignore[no-untyped-def]
    """Write gradients of depthwise weights, each of a share of the images, into parts [shares, C, k, k].

    x [N, H, W, C], gradient [N, H', W', C]; `before` pixels of padding at the top and the left.
    """
    images, channels, kernel = len(x), x.shape[3], parts.shape[2]
    down, right = gradient.shape[1], gradient.shape[2]
    rows, columns = (down - 1) * stride + kernel, (right - 1) * stride + kernel  # that are read
    pieces, together = -(-channels // lanes), _GATHERED // lanes
    for share in prange(len(parts)):
        sums = np.zeros((pieces, kernel, kernel, right * lanes), np.float32)
        lines = np.zeros((together, 1, down, right * lanes), np.float32)
        padded = np.zeros((together, stride, rows, -(-columns // stride) * lanes), np.float32)
        for n in range(share * images // len(parts), (share + 1) * images // len(parts)):
            for first in range(0, pieces, together):
                _gather(x[n], first * lanes, before, stride, rows, columns, padded)
                _gather(gradient[n], first * lanes, 0, 1, down, right, lines)
                for piece in range(min(together, pieces - first)):
                    _add_taps(lines[piece, 0], padded[piece], stride, lanes, sums[first + piece])
        _add_columns(sums, lanes, parts[share])
