"""The largest values of long rows, without sorting them."""

from __future__ import annotations

import numpy as np

_GROUP = 64  # columns of which the largest is found first: one of N / 64 is a sixty-fourth of the work


def largest(values: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest values of each row, int64 [n, k], in no order.

    The k largest lie in the k groups of columns with the largest maxima, so most values are looked at once.
    """
    count, width = values.shape
    whole = width // _GROUP * _GROUP
    if width // _GROUP <= 2 * k:
        return np.argpartition(-values, k - 1, axis=1)[:, :k]
    groups = values[:, :whole].reshape(count, whole // _GROUP, _GROUP)
    best = np.argpartition(-groups.max(axis=2), k - 1, axis=1)[:, :k]
    columns = (best[:, :, None] * _GROUP + np.arange(_GROUP)).reshape(count, k * _GROUP)
    rest = np.broadcast_to(np.arange(whole, width), (count, width - whole))
    columns = np.concatenate([columns, rest], axis=1)
    inside = np.argpartition(-np.take_along_axis(values, columns, axis=1), k - 1, axis=1)[:, :k]
    return np.take_along_axis(columns, inside, axis=1)
