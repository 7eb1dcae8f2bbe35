"""The nearest images of each image, of its own class and of the others: compared exactly, a block at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_BLOCK_BYTES = 2**28  # of similarities that are held at once
_GROUP = 64  # columns of which the largest is found first: one of N / 64 is a sixty-fourth of the work


@dataclass(frozen=True)
class Neighbours:
    """Nearest images first; -1 and similarity -inf where there are fewer.

    Attributes:
        own: indices of images of the same class, int64 [N, K].
        own_similarity: float32 [N, K].
        other: indices of images of other classes, int64 [N, M].
        other_similarity: float32 [N, M].
    """

    own: np.ndarray
    own_similarity: np.ndarray
    other: np.ndarray
    other_similarity: np.ndarray


def find_neighbours(rows: np.ndarray, classes: np.ndarray, own: int, other: int) -> Neighbours:
    """Compare all images with each other; no image is its own neighbour.

    Beside the result this takes 256 MiB, and as much as `rows`.

    Args:
        rows: unit features, float32 [N, D].
        classes: int64 [N].
        own: K, number of neighbours of the same class.
        other: M, number of neighbours of other classes.
    """
    count, order = len(rows), np.argsort(classes, kind="stable")  # images of a class are neighbouring columns
    width = -(-count // _GROUP) * _GROUP
    columns = np.zeros((width, rows.shape[1]), np.float32)
    columns[:count] = rows[order]
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    ends = starts + sizes
    found = Neighbours(*(array for k in (own, other) for array in _empty(count, k)))
    height = int(np.clip(_BLOCK_BYTES // (4 * width), 1, count))
    buffer = np.empty((height, width), np.float32)
    for first in range(0, count, height):
        last = min(first + height, count)
        similar = np.matmul(columns[first:last], columns.T, out=buffer[: last - first])
        similar[:, count:] = -np.inf
        similar[np.arange(last - first), np.arange(first, last)] = -np.inf
        here = slice(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(starts, last, "left")))
        for start, end in zip(starts[here].tolist(), ends[here].tolist(), strict=True):
            low, high = max(start, first), min(end, last)
            mine = similar[low - first : high - first, start:end]
            places, values = _largest(mine, own)
            _write(found.own, found.own_similarity, order, slice(low, high), places, values, start)
            mine[:] = -np.inf
        places, values = _largest_of_many(similar, other)
        _write(found.other, found.other_similarity, order, slice(first, last), places, values, 0)
    return found


def _empty(count: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((count, k), -1, np.int64), np.full((count, k), -np.inf, np.float32)


def _write(
    indices: np.ndarray,
    similarity: np.ndarray,
    order: np.ndarray,
    rows: slice,
    places: np.ndarray,
    values: np.ndarray,
    offset: int,
) -> None:
    """Enter the columns `places` + `offset` for some rows, both by their place in `order`."""
    images, k = order[rows], places.shape[1]
    there = values > -np.inf
    indices[images, :k] = np.where(there, order[np.where(there, places + offset, 0)], -1)
    similarity[images, :k] = values


def _largest(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Places and values of the k largest of each row, largest first, or of all: [n, min(k, columns)]."""
    k = min(k, values.shape[1])
    places = np.argpartition(-values, k - 1, axis=1)[:, :k]
    found = np.take_along_axis(values, places, axis=1)
    by_size = np.lexsort((places, -found))
    return np.take_along_axis(places, by_size, axis=1), np.take_along_axis(found, by_size, axis=1)


def _largest_of_many(values: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `_largest`, for rows whose length is a multiple of _GROUP: the k largest lie in the k best groups."""
    rows, width = values.shape
    groups = values.reshape(rows, width // _GROUP, _GROUP)
    if groups.shape[1] <= 2 * k:
        return _largest(values, k)
    best, _ = _largest(groups.max(axis=2), k)
    inside = groups[np.arange(rows)[:, None], best].reshape(rows, k * _GROUP)
    places, found = _largest(inside, k)
    return np.take_along_axis(best, places // _GROUP, axis=1) * _GROUP + places % _GROUP, found
