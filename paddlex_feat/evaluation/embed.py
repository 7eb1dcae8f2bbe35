"""Compute the features of the images of a list, in its order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.loading.loader import evaluation_batches
from paddlex_feat.errors import EvaluationError, ImageError
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.progress import bar

Batch = tuple[np.ndarray, np.ndarray]
EXCHANGED_BYTES = 2**25  # of features in one exchange, all processes together


class Extractor(Protocol):
    """Pixels to features: `inference.extractor.FeatureExtractor`, `inference.network.NetworkExtractor`."""

    @property
    def preprocess(self) -> Preprocess:
        """Pre-processing of the images."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3], RGB, resized -> float32 [N, D]."""


def embed(
    extract: Extractor,
    files: Sequence[str],
    batch_size: int,
    workers: int,
    group: ProcessGroup | None = None,
    allocate: Callable[[tuple[int, int]], np.ndarray] | None = None,
    name: Callable[[int], str] | None = None,
    after_batch: Callable[[], None] | None = None,
) -> np.ndarray:
    """Features of all files, float32 [len(files), D], on every rank.

    The features are held once: the array is allocated when the first batch tells D, and filled by index.

    Args:
        extract: pixels to features.
        files: paths of the images.
        batch_size: images of a batch.
        workers: decoding threads; decoding overlaps with `extract`.
        group: processes that share the work by whole batches, so that the result equals that of one process to the
            last bit.
        allocate: shape -> the float32 array to fill; in memory by default.
        name: index -> name of the image in an error; its file by default.
        after_batch: called after a batch, equally often on every rank, so that it may use collectives; its exceptions
            end the computation.

    Raises:
        ImageError: If a file cannot be decoded; the error names it, nothing is substituted.
        EvaluationError: If features are not finite ("features-not-finite"), or not one row for each image
            ("features-not-rows").
    """
    group, allocate = group or ProcessGroup(), allocate or _in_memory
    features: np.ndarray | None = None
    name = name or files.__getitem__
    batches = evaluation_batches(files, extract.preprocess, batch_size, workers, group.rank, group.size)
    rounds = -(-len(files) // batch_size) // group.size  # in which every rank has a batch
    with bar(len(files), "embedding", "images") as progress:
        for number, (indices, images) in enumerate(_naming(batches, files, name)):
            rows = extract(images)
            _check_features(rows, indices, name)
            if features is None:
                features = allocate((len(files), rows.shape[1]))
            features[indices[0] : indices[-1] + 1] = rows
            progress.update(min(len(indices) * group.size, len(files) - int(indices[0])))  # the other ranks' too
            if after_batch is not None and number < rounds:
                after_batch()
    if group.size > 1:
        features = _exchange(features, len(files), batch_size, group, allocate)
    return features if features is not None else allocate((0, 0))


def _naming(batches: Iterator[Batch], files: Sequence[str], name: Callable[[int], str]) -> Iterator[Batch]:
    """Yield the batches; the error of an image that cannot be decoded names it as in the list."""
    try:
        yield from batches
    except ImageError as error:
        if str(error.where) not in files:
            raise
        where = name(files.index(str(error.where)))
        raise ImageError(error.what, where=where, fix=error.fix, code=error.code) from error


def _in_memory(shape: tuple[int, int]) -> np.ndarray:
    return np.empty(shape, np.float32)


def _check_features(rows: np.ndarray, indices: np.ndarray, name: Callable[[int], str]) -> None:
    if rows.ndim != 2 or len(rows) != len(indices):
        raise EvaluationError(
            f"The network returned an array of shape {rows.shape} for {len(indices)} images.",
            fix="Evaluate a network with one feature, a row of numbers, for each image.",
            code="features-not-rows",
        )
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise EvaluationError(
            f"The features of {np.count_nonzero(~finite)} of {len(rows)} images of a batch are not finite numbers.",
            where=name(int(indices[int(np.argmin(finite))])),
            fix="If the image is intact, the weights are damaged: take those of an earlier epoch; with "
            "Evaluate.amp=O1, try OFF or Train.amp_dtype=bfloat16.",
            code="features-not-finite",
        )


def _exchange(
    features: np.ndarray | None,
    count: int,
    batch_size: int,
    group: ProcessGroup,
    allocate: Callable[[tuple[int, int]], np.ndarray],
) -> np.ndarray:
    """Fill in the rows of the other ranks, in pieces of bounded size."""
    local_dim = np.array([0 if features is None else features.shape[1]], np.int64)
    dim = int(np.concatenate(group.all_gather_rows(local_dim)).max())  # a rank may have no batch at all
    if features is None:
        features = allocate((count, dim))
    for pieces in _pieces(count, batch_size, group.size, EXCHANGED_BYTES // (4 * dim)):
        for rank, part in enumerate(group.all_gather_rows(features[pieces[group.rank]])):
            if rank != group.rank:
                features[pieces[rank]] = part
    return features


def _pieces(count: int, batch_size: int, size: int, rows: int) -> Iterator[list[np.ndarray]]:
    """Yield the indices that each rank embedded, as `evaluation_batches` deals them, about `rows` at a time."""
    step = size * batch_size * max(1, rows // (size * batch_size))  # whole rounds of batches
    for first in range(0, count, step):
        indices = np.arange(first, min(first + step, count))
        ranks = indices // batch_size % size
        yield [indices[ranks == rank] for rank in range(size)]
