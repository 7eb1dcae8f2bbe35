"""Images of a list to features, in the order of the list."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.loading.loader import evaluation_batches
from paddlex_feat.errors import EvaluationError, ImageError
from paddlex_feat.runtime.distributed import Group
from paddlex_feat.runtime.progress import bar

Batch = tuple[np.ndarray, np.ndarray]
EXCHANGED_BYTES = 2**25  # of features at a time, of all processes together


class Extractor(Protocol):
    """Pixels to features: `inference.extractor.FeatureExtractor`, `inference.network.NetworkExtractor`."""

    @property
    def preprocess(self) -> Preprocess:
        """How the images are made ready."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3], RGB, resized -> float32 [N, D]."""


def embed(
    extract: Extractor,
    files: Sequence[str],
    batch_size: int,
    workers: int,
    group: Group | None = None,
    allocate: Callable[[tuple[int, int]], np.ndarray] | None = None,
    name: Callable[[int], str] | None = None,
    after_batch: Callable[[], None] | None = None,
) -> np.ndarray:
    """Features of all files, float32 [len(files), D], on every rank.

    Args:
        workers: decoding threads; decoding overlaps with `extract`.
        group: processes that share the work by whole batches, so that the result is that of one
            process to the last bit.
        allocate: shape -> the float32 array to fill; in memory by default.
        name: index -> what an error calls the image; its file by default.
        after_batch: called after a batch, equally often on every rank, so that it may exchange; what it raises ends this.

    The features are held once: the array is made when the first batch tells D, and filled by index.

    Raises ImageError naming the file if one cannot be decoded, EvaluationError if features are not
    finite; nothing is substituted.
    """
    group, allocate = group or Group(), allocate or _in_memory
    features: np.ndarray | None = None
    name = name or files.__getitem__
    batches = evaluation_batches(files, extract.preprocess, batch_size, workers, group.rank, group.size)
    rounds = -(-len(files) // batch_size) // group.size  # in which every rank has a batch
    with bar(len(files), "embedding", "images") as progress:
        for number, (indices, images) in enumerate(_naming(batches, files, name)):
            rows = extract(images)
            _require_sound(rows, indices, name)
            if features is None:
                features = allocate((len(files), rows.shape[1]))
            features[indices[0] : indices[-1] + 1] = rows
            progress.update(min(len(indices) * group.size, len(files) - int(indices[0])))  # the others keep step
            if after_batch is not None and number < rounds:
                after_batch()
    if group.size > 1:
        features = _exchange(features, len(files), batch_size, group, allocate)
    return features if features is not None else allocate((0, 0))


def _naming(batches: Iterator[Batch], files: Sequence[str], name: Callable[[int], str]) -> Iterator[Batch]:
    """The batches; an image that cannot be decoded gets its name in the list."""
    try:
        yield from batches
    except ImageError as error:
        if str(error.where) not in files:
            raise
        raise ImageError(error.what, where=name(files.index(str(error.where))), fix=error.fix) from error


def _in_memory(shape: tuple[int, int]) -> np.ndarray:
    return np.empty(shape, np.float32)


def _require_sound(rows: np.ndarray, indices: np.ndarray, name: Callable[[int], str]) -> None:
    if rows.ndim != 2 or len(rows) != len(indices):
        raise EvaluationError(
            f"The network answers {len(indices)} images with an array of shape {rows.shape}.",
            fix="Evaluate a network with one feature, a row of numbers, for each image.",
        )
    finite = np.isfinite(rows).all(axis=1)
    if not finite.all():
        raise EvaluationError(
            f"The features of {np.count_nonzero(~finite)} of {len(rows)} images of a batch are not finite numbers.",
            where=name(int(indices[int(np.argmin(finite))])),
            fix="If that image is sound, the weights are not: take those of an earlier epoch; with Evaluate.amp=O1, "
            "try OFF or Train.amp_dtype=bfloat16.",
        )


def _exchange(
    features: np.ndarray | None,
    count: int,
    batch_size: int,
    group: Group,
    allocate: Callable[[tuple[int, int]], np.ndarray],
) -> np.ndarray:
    """Fill in the other ranks' rows, a bounded piece at a time."""
    own_dim = np.array([0 if features is None else features.shape[1]], np.int64)
    dim = int(np.concatenate(group.gather_rows(own_dim)).max())  # a rank may have no batch at all
    if features is None:
        features = allocate((count, dim))
    for pieces in _pieces(count, batch_size, group.size, EXCHANGED_BYTES // (4 * dim)):
        for rank, part in enumerate(group.gather_rows(features[pieces[group.rank]])):
            if rank != group.rank:
                features[pieces[rank]] = part
    return features


def _pieces(count: int, batch_size: int, size: int, rows: int) -> Iterator[list[np.ndarray]]:
    """Indices that each rank embedded, as `evaluation_batches` deals them; about `rows` of them at a time."""
    step = size * batch_size * max(1, rows // (size * batch_size))  # whole rounds of batches
    for first in range(0, count, step):
        indices = np.arange(first, min(first + step, count))
        ranks = indices // batch_size % size
        yield [indices[ranks == rank] for rank in range(size)]
