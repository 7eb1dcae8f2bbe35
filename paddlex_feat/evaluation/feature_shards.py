"""Features of an evaluation that jobs computed which do not know of each other, as files that one job ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from paddlex_feat.data.shard import Shard
from paddlex_feat.data.shard_files import RECORD, ShardedJob, digest_of, readable
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.fileio.npz import NpzWriter

STEM = "features"
BATCH = "Evaluate.batch_size"
_VERSION = 1
_ROWS = 4096  # that are copied at a time


def job_of(names: Sequence[str], model: str, batch_size: int) -> ShardedJob:
    """What the shards agree in.

    Args:
        names: of all images, in the order of the features.
        model: what tells the model's features from those of others.
        batch_size: images of a batch, by which they are dealt.
    """
    return ShardedJob(STEM, _VERSION, len(names), digest_of(names), {"model": model, BATCH: str(batch_size)})


def own_images(images: int, batch_size: int, shard: Shard) -> np.ndarray:
    """The images of a shard, int64: every n-th batch, so that batches and features are those of one run."""
    indices = np.arange(images)
    own: np.ndarray = indices[indices // batch_size % shard.count == shard.number]
    return own


def write(path: Path, job: ShardedJob, shard: Shard, features: np.ndarray) -> None:
    """Write the features of a shard, float32 [n, D]. Raises OutputError."""
    with atomic_path(path) as temporary, NpzWriter(temporary) as writer:
        pieces = (features[at : at + _ROWS].tobytes() for at in range(0, len(features), _ROWS))
        writer.write("features", features.dtype, features.shape, pieces)  # not whole: it may be a file
        writer.write_texts(RECORD, [job.record(shard)])


def require_whole(path: Path, job: ShardedJob, shard: Shard) -> int:
    """How many features a file has that is there already. Raises ShardError unless it is the shard's, and whole."""
    with readable(path) as reader:
        job.require(path, reader, shard.count)
        images = len(own_images(job.images, int(job.more[BATCH]), shard))
        for _ in reader.blocks("features", np.float32, images):
            pass
    return images


def read(place: Path, job: ShardedJob, allocate: Callable[[tuple[int, int]], np.ndarray]) -> np.ndarray:
    """The features of all images, float32 [images, D].

    Args:
        place: the folder of the shards' files, or the folder Global.output of their jobs.
        job: of which they must be.
        allocate: shape -> the array to fill.

    Raises ShardError for shards that are missing, repeated, damaged, or of another job.
    """
    features: np.ndarray | None = None
    paths = job.files(place, "evaluate", "Evaluate.shard")
    for path in paths:
        with readable(path) as reader:
            own = own_images(job.images, int(job.more[BATCH]), job.require(path, reader, len(paths)))
            first = 0
            for block in reader.blocks("features", np.float32, len(own)):
                if features is None:
                    features = allocate((job.images, block.shape[1]))
                if block.shape[1] != features.shape[1] or not np.isfinite(block).all():
                    raise ValueError(f"what it has are not features of {features.shape[1]} finite numbers")
                features[own[first : first + len(block)]] = block
                first += len(block)
    return allocate((0, 0)) if features is None else features
