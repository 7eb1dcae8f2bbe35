"""Batches of decoded images, prepared by threads while the caller computes.

Threads, not processes: OpenCV releases Python's lock while it decodes and warps, nothing has
to be pickled, and /dev/shm is not needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import cv2
import numpy as np

from paddlex_feat.pipeline.augment import Augment
from paddlex_feat.pipeline.decode import read_rgb
from paddlex_feat.pipeline.preprocess import Preprocess

Job = TypeVar("Job")
Result = TypeVar("Result")
BATCHES_AHEAD = 2


def map_ahead(
    groups: Iterable[Sequence[Job]], work: Callable[[Job], Result], workers: int
) -> Iterator[tuple[Sequence[Job], list[Result]]]:
    """Apply `work` to every job in threads, groups in order, at most BATCHES_AHEAD groups ahead.

    The first exception of `groups` or `work`, in order, is raised here after the groups before it;
    later jobs are cancelled.
    """
    cv2.setNumThreads(1)  # one image a thread is the parallelism; OpenCV's own would compete
    pending: deque[tuple[Sequence[Job], list[Future[Result]]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="decode")
    stream, fault, more = iter(groups), None, True
    try:
        while more or pending:
            while more and len(pending) <= BATCHES_AHEAD:
                try:
                    group = next(stream)
                    pending.append((group, [pool.submit(work, job) for job in group]))
                except StopIteration:
                    more = False
                except Exception as error:  # noqa: BLE001 - raised below, after what came before it
                    fault, more = error, False
            if pending:
                done, futures = pending.popleft()
                yield done, [f.result() for f in futures]
        if fault is not None:
            raise fault
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def training_batches(
    batches: list[np.ndarray],
    paths: Sequence[str],
    preprocess: Preprocess,
    augment: Augment,
    seed: int,
    epoch: int,
    workers: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Augmented batches of one epoch: (image indices int64 [N], images uint8 [N, S, S, 3]).

    Each sample's randomness comes from (seed, epoch, position in the epoch), so the number of
    workers changes nothing.
    """

    def load(job: tuple[int, int]) -> np.ndarray:
        position, index = job
        rng = np.random.default_rng((seed, epoch, 2, position))
        return augment.read(paths[index], preprocess, rng)

    start, groups = 0, []
    for batch in batches:
        groups.append(list(enumerate(batch.tolist(), start)))
        start += len(batch)
    for group, images in map_ahead(groups, load, workers):
        yield np.asarray([index for _, index in group], np.int64), np.stack(images)


def evaluation_batches(
    paths: Sequence[str], preprocess: Preprocess, batch_size: int, workers: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All images in order, not augmented: (indices int64 [N], images uint8 [N, S, S, 3])."""
    groups = [range(i, min(i + batch_size, len(paths))) for i in range(0, len(paths), batch_size)]
    for group, images in map_ahead(groups, lambda i: preprocess.resize(read_rgb(paths[i])), workers):
        yield np.asarray(group, np.int64), np.stack(images)
