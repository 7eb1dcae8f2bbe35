"""Images of a list to features, in the order of the list."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

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
) -> np.ndarray:
    """Features of all files, float32 [len(files), D].

    Args:
        extract: uint8 [N, S, S, 3] -> float32 [N, D].
        workers: decoding threads; decoding overlaps with `extract`.

    Raises ImageError naming the file if one cannot be decoded; nothing is substituted.
    """
    features: np.ndarray | None = None
    with bar(len(files), what, "images") as progress:
        for indices, images in evaluation_batches(files, preprocess, batch_size, workers):
            batch = extract(images)
            if features is None:
                features = np.empty((len(files), batch.shape[1]), np.float32)
            features[indices] = batch
            progress.update(len(indices))
    return features if features is not None else np.empty((0, 0), np.float32)
