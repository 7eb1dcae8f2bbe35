"""The nearest images of each image, of its own class and of the others: compared exactly, a block at a time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddlex_feat.evaluation.ranking.largest import largest

_BLOCK_BYTES = 2**28  # of similarities that are held at once


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
    columns = rows[order]
    _, starts, sizes = np.unique(classes[order], return_index=True, return_counts=True)
    ends = starts + sizes
    found = Neighbours(*(array for k in (own, other) for array in _empty(count, k)))
    height = int(np.clip(_BLOCK_BYTES // (4 * count), 1, count))
    buffer = np.empty((height, count), np.float32)
    for first in range(0, count, height):
        last = min(first + height, count)
        similar = np.matmul(columns[first:last], columns.T, out=buffer[: last - first])
        similar[np.arange(last - first), np.arange(first, last)] = -np.inf
        here = slice(int(np.searchsorted(ends, first, "right")), int(np.searchsorted(starts, last, "left")))
        for start, end in zip(starts[here].tolist(), ends[here].tolist(), strict=True):
            low, high = max(start, first), min(end, last)
            mine = similar[low - first : high - first, start:end]
            places, values = _largest(mine, own)
            _write(found.own, found.own_similarity, order, slice(low, high), places, values, start)
            mine[:] = -np.inf
        places, values = _largest(similar, other)
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
    places = largest(values, k)
    found = np.take_along_axis(values, places, axis=1)
    by_size = np.lexsort((places, -found))
    return np.take_along_axis(places, by_size, axis=1), np.take_along_axis(found, by_size, axis=1)
