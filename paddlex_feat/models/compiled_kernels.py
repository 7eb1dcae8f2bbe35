"""Loops over maps with channels last, compiled by Numba for the processor at hand, for training on a CPU.

Rows are pixels and columns channels: float32 [R, C]. They are taken in blocks that stay in a processor's cache. What a
block is depends on the shape alone, so the number of threads changes no bit.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numba
import numpy as np
from numba import njit, prange
from threadpoolctl import ThreadpoolController

# With Paddle's own TBB, which Numba would take first, graphs that faiss builds in the same process miss neighbours.
vars(numba.config)["THREADING_LAYER_PRIORITY"] = ["omp", "workqueue", "tbb"]
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
        self._pool, self._blas = ThreadPoolExecutor(threads, "loops"), ThreadpoolController()

    def each(self, work: Callable[[int], None], count: int) -> None:
        """Call work with each number below `count`, on all threads, in which BLAS has one thread."""
        with self._blas.limit(limits=1, user_api="blas"):
            deque(self._pool.map(work, range(count)), 0)

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


@_parallel
def add_row(y, row):  # type: ignore[no-untyped-def]
    """Add row [C] to every row of y [R, C]."""
    for i in prange(len(y)):
        for c in range(len(row)):
            y[i, c] += row[c]


@_parallel
def layer_norm_gradients(x, gradient, weight, epsilon, rows, parts, out):  # type: ignore[no-untyped-def]
    """Write the gradient of x [R, C] into out, and each block's of weight and bias into parts [blocks, 2, C]."""
    count = x.shape[1]
    share = np.float32(1) / np.float32(count)
    for block in prange(len(parts)):
        of_weight, of_bias = parts[block, 0], parts[block, 1]
        of_weight[:] = 0
        of_bias[:] = 0
        for row in range(block * rows, min(len(x), (block + 1) * rows)):
            mean, square = np.float32(0), np.float32(0)
            for c in range(count):
                mean += x[row, c]
            mean *= share
            for c in range(count):
                square += (x[row, c] - mean) * (x[row, c] - mean)
            inverse = np.float32(1) / np.sqrt(square * share + epsilon)
            total, along = np.float32(0), np.float32(0)
            for c in range(count):
                unit, g = (x[row, c] - mean) * inverse, gradient[row, c]
                of_weight[c] += g * unit
                of_bias[c] += g
                total += g * weight[c]
                along += g * weight[c] * unit
            total *= share
            along *= share
            for c in range(count):
                unit = (x[row, c] - mean) * inverse
                out[row, c] = inverse * (gradient[row, c] * weight[c] - total - unit * along)


@_inner
def _exp(x):  # type: ignore[no-untyped-def]
    """e^x for x of at most 0, to 2e-7 of it: a power of 2 with a polynomial for its fraction."""
    power = x * np.float32(1.44269504)
    power = np.float32(-126) if power < np.float32(-126) else power  # NaN stays
    whole = np.floor(power)
    f = (power - whole) * np.float32(0.69314718)  # e^f, f below 0.7, by its Taylor series
    series = np.float32(1) + f * (
        np.float32(1)
        + f
        * (
            np.float32(1 / 2)
            + f
            * (
                np.float32(1 / 6)
                + f
                * (
                    np.float32(1 / 24)
                    + f * (np.float32(1 / 120) + f * (np.float32(1 / 720) + f * np.float32(1 / 5040)))
                )
            )
        )
    )
    return series * np.int32(np.int32(whole + np.float32(127)) << 23).view(np.float32)


@_inner
def _share_below(x, gauss):  # type: ignore[no-untyped-def]
    """The normal distribution's share below x, to 1e-7: Abramowitz and Stegun, 7.1.26; `gauss` is exp(-x^2 / 2)."""
    t = np.float32(1) / (np.float32(1) + np.float32(0.3275911 * 0.70710678) * abs(x))
    tail = t * (
        np.float32(0.254829592)
        + t
        * (
            np.float32(-0.284496736)
            + t * (np.float32(1.421413741) + t * (np.float32(-1.453152027) + t * np.float32(1.061405429)))
        )
    )
    tail *= np.float32(0.5) * gauss
    return np.float32(1) - tail if x > 0 else tail


@_inner
def softmax_rows(x, scale):  # type: ignore[no-untyped-def]
    """Replace each row of x [R, C] by its softmax after multiplication by scale."""
    for row in range(len(x)):
        largest, total = x[row, 0], np.float32(0)
        for c in range(x.shape[1]):
            largest = max(largest, x[row, c])
        for c in range(x.shape[1]):
            x[row, c] = _exp((x[row, c] - largest) * scale)
            total += x[row, c]
        share = np.float32(1) / total
        for c in range(x.shape[1]):
            x[row, c] *= share


@_inner
def softmax_gradient(shares, scale, gradient):  # type: ignore[no-untyped-def]
    """Replace the gradient of a softmax, [R, C], by that of what `softmax_rows` was given; shares are its result."""
    for row in range(len(shares)):
        along = np.float32(0)
        for c in range(shares.shape[1]):
            along += shares[row, c] * gradient[row, c]
        for c in range(shares.shape[1]):
            gradient[row, c] = shares[row, c] * (gradient[row, c] - along) * scale


@_parallel
def gelu(x, y):  # type: ignore[no-untyped-def]
    """Write x times the normal distribution's share below x into y, both [n]."""
    for i in prange(len(x)):
        y[i] = x[i] * _share_below(x[i], _exp(np.float32(-0.5) * x[i] * x[i]))


@_parallel
def gelu_gradient(x, gradient, out):  # type: ignore[no-untyped-def]
    """Write the gradient of the x [n] of `gelu` into out."""
    for i in prange(len(x)):
        gauss = _exp(np.float32(-0.5) * x[i] * x[i])
        out[i] = gradient[i] * (_share_below(x[i], gauss) + x[i] * gauss * np.float32(0.39894228))


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
