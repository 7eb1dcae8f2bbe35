"""Which classes a network finds alike: by the cosines of their class vectors."""

from __future__ import annotations

import numpy as np
import paddle

from paddlex_feat.losses.rows import unit_rows

_COSINES = 2**24  # that are computed together, at most


@paddle.no_grad()
def nearest_classes(vectors: np.ndarray, count: int) -> np.ndarray:
    """The nearest other classes of each class, nearest first: int64 [C, count].

    Computed on the current device. Of classes with several vectors, the nearest two count.

    Args:
        vectors: K of each class, of any length, float32 [C, K, D].
        count: how many, below C.
    """
    classes, each, dim = vectors.shape
    unit = unit_rows(paddle.to_tensor(vectors).reshape([-1, dim]))
    rows = max(1, _COSINES // (classes * each * each))
    numbers = paddle.arange(classes)
    found = []
    for start in range(0, classes, rows):
        part = unit[start * each : (start + rows) * each]
        cos = (part @ unit.T).reshape([-1, each, classes, each]).max(axis=[1, 3])
        own = numbers[start : start + rows].unsqueeze(1) == numbers.unsqueeze(0)
        nearest = paddle.where(own, paddle.full_like(cos, -2.0), cos).topk(count, axis=1)[1]
        found.append(nearest.numpy())
    return np.concatenate(found).astype(np.int64)
