"""Images of a list to features, in the order of the list."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from paddlex_feat.group import Group
from paddlex_feat.pipeline.loader import evaluation_batches
from paddlex_feat.pipeline.preprocess import Preprocess
from paddlex_feat.progress import bar


def embed(
    extract: Callable[[np.ndarray], np.ndarray],
    files: Sequence[str],
    preprocess: Preprocess,
    batch_size: int,
    workers: int,
    what: str = "embedding",
    group: Group | None = None,
) -> np.ndarray:
    """Features of all files, float32 [len(files), D], on every rank.

    Args:
        extract: uint8 [N, S, S, 3] -> float32 [N, D].
        workers: decoding threads; decoding overlaps with `extract`.
        group: processes that share the work; features are put together by index, so the
            result is that of one process to the last bit.

    Raises ImageError naming the file if one cannot be decoded; nothing is substituted.
    """
    group = group or Group()
    numbers, parts = [np.empty(0, np.int64)], [np.empty((0, 0), np.float32)]
    with bar(len(files), what, "images") as progress:
        for indices, images in evaluation_batches(files, preprocess, batch_size, workers, group.rank, group.size):
            numbers.append(indices)
            parts.append(extract(images))
            progress.update(len(indices))
    own = np.concatenate(parts[1:]) if len(parts) > 1 else parts[0]
    dim = max(len(shape) for shape in group.gather_rows(np.zeros(own.shape[1], np.int8)))
    rows = np.concatenate(group.gather_rows(own if len(own) else np.empty((0, dim), np.float32)))
    features = np.empty((len(files), dim), np.float32)
    features[np.concatenate(group.gather_rows(np.concatenate(numbers)))] = rows
    return features
