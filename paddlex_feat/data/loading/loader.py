"""Batches of decoded images, prepared by threads while the caller computes.

OpenCV releases Python's lock while it decodes and warps. The rest of a sample is Python code, which limits all threads
of a process together and delays the thread that launches a GPU's kernels; for that case see processes.py.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.decode import read_bgr
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.loading.slices import Failure, Samples, replacement_generator, slices
from paddlex_feat.errors import ImageError
from paddlex_feat.runtime.malloc import keep_freed_memory

log = logging.getLogger(__name__)
Job = TypeVar("Job")
Result = TypeVar("Result")
Out = TypeVar("Out")
BATCHES_AHEAD = 2


def prefetch_map(
    groups: Iterable[Sequence[Job]], work: Callable[[Job], Result], workers: int, ahead: int = BATCHES_AHEAD
) -> Generator[tuple[Sequence[Job], list[Result]], None, None]:
    """Apply `work` to every job in threads, groups in order, at most `ahead` groups ahead.

    The first exception of `groups` or `work`, in order, is raised here after the groups before it;
    later jobs are cancelled.
    """
    with _decoders(workers) as pool:

        def submit(group: Sequence[Job]) -> Callable[[], tuple[Sequence[Job], list[Result]]]:
            futures = [pool.submit(work, job) for job in group]
            return lambda: (group, [f.result() for f in futures])

        yield from in_order(groups, submit, ahead)


def prefetch_map_then(
    groups: Iterable[Sequence[Job]],
    work: Callable[[Job], Result],
    workers: int,
    then: Callable[[Sequence[Job], list[Result]], Out],
    end: Callable[[], object],
    ahead: int = BATCHES_AHEAD + 1,
) -> Generator[Out, None, None]:
    """As `prefetch_map`, and `then` is applied to each group and its results in one more thread, group after group.

    Finished groups are yielded immediately, even while a later one is still running.

    Args:
        groups: the jobs, read one group at a time.
        work: applied to every job in one of the decoding threads.
        workers: number of decoding threads.
        then: applied to a group and its results, which are in the order of its jobs.
        end: called before the threads are waited for; it makes long jobs give up.
        ahead: most groups in progress after the one that is yielded next.
    """
    with ExitStack() as stack:
        last = stack.enter_context(_threads(1, "compute"))
        pool = stack.enter_context(_decoders(workers))
        stack.callback(end)

        def submit(group: Sequence[Job]) -> Callable[[], Out]:
            futures = [pool.submit(work, job) for job in group]
            return last.submit(lambda: then(group, [f.result() for f in futures])).result

        yield from in_order(groups, submit, ahead)


def in_order(
    groups: Iterable[Job], submit: Callable[[Job], Callable[[], Out]], ahead: int
) -> Generator[Out, None, None]:
    """Results of what `submit` has started, in order, while at most `ahead` later ones are running."""
    pending: deque[Callable[[], Out]] = deque()
    stream, fault, more = iter(groups), None, True
    while more or pending:
        while more and len(pending) <= ahead:
            try:
                pending.append(submit(next(stream)))
            except StopIteration:
                more = False
            except Exception as error:  # noqa: BLE001 - raised below, after what came before it
                fault, more = error, False
        if pending:
            yield pending.popleft()()
    if fault is not None:
        raise fault


@contextmanager
def _decoders(workers: int) -> Iterator[ThreadPoolExecutor]:
    keep_freed_memory()
    with _OPENCV.disabled(), _threads(workers, "decode") as pool:
        yield pool


class _OpencvThreads:
    """Switches off OpenCV's own threads, whose number is the whole process's, while ours decode."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._former = 1

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the block each image is decoded by one thread; the last block to end restores OpenCV's number."""
        with self._lock:
            if not self._users:
                self._former = cv2.getNumThreads()
                cv2.setNumThreads(0)  # 1 would wait endlessly for OpenCV's threads, which a forked process has lost
            self._users += 1
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users and cv2.getNumThreads() == 1:  # else somebody else has set it meanwhile
                    cv2.setNumThreads(self._former)


_OPENCV = _OpencvThreads()


@contextmanager
def _threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class CorruptImageReplacer:
    """Replaces images that cannot be decoded by others of their class, so that a P x K batch keeps its form.

    Without it nothing is replaced, and the first such image is an error.

    Args:
        labels: class of every image, int64 [images].
    """

    def __init__(self, labels: np.ndarray):
        self._labels = labels
        self._lock = threading.Lock()
        self.files: set[str] = set()

    def replace(
        self, index: int, paths: Sequence[str], load: Callable[[str], np.ndarray], rng: np.random.Generator
    ) -> tuple[int, np.ndarray]:
        """Another image of the class of `index`, with its pixels. Raises ImageError if there is none."""
        own = self._labels[index]
        for other in rng.permutation(np.flatnonzero(self._labels == own)):
            if other != index:
                try:
                    return int(other), load(paths[other])
                except ImageError as error:
                    self.note(error)
        raise ImageError(
            "No image of this class can be decoded.",
            where=paths[index],
            fix="Repair the files or remove the class.",
            code="class-undecodable",
        )

    def note(self, error: ImageError) -> None:
        """Count the file of `error`, and warn of it the first time."""
        with self._lock:
            known = str(error.where) in self.files
            self.files.add(str(error.where))
        if not known:
            log.warning("%s %s: left out, another image of its class takes its place.", error.what, error.where)


@dataclass(frozen=True)
class Batch:
    """A batch in the making.

    Attributes:
        first: position of its first sample in the epoch.
        indices: of the images, int64 [N], replacements included.
        images: uint8 [N, S, S, 3].
    """

    first: int
    indices: np.ndarray
    images: np.ndarray

    def replace(
        self,
        failures: Sequence[Failure],
        paths: Sequence[str],
        samples: Samples,
        key: Sequence[int],
        bad: CorruptImageReplacer | None,
    ) -> None:
        """Replace the images that could not be read; raise the first failure if `bad` is None."""
        for position, error in failures:
            if bad is None or not isinstance(error, ImageError):
                raise error
            bad.note(error)
            row, rng = position - self.first, replacement_generator(key, position)

            def read(path: str, position: int = position) -> np.ndarray:
                return samples.read(path, key, position)

            self.indices[row], self.images[row] = bad.replace(int(self.indices[row]), paths, read, rng)


def numbered(batches: Iterable[np.ndarray], first: int) -> Iterator[tuple[int, np.ndarray]]:
    """(position in the epoch, image indices int64 [N]) of the batches from number `first` on."""
    position = 0
    for number, batch in enumerate(batches):
        if number >= first:
            yield position, np.array(batch, np.int64)
        position += len(batch)


def training_batches(
    batches: Iterable[np.ndarray],
    paths: Sequence[str],
    preprocess: Preprocess,
    augment: Augment,
    key: tuple[int, ...],
    workers: int,
    first: int = 0,
    bad: CorruptImageReplacer | None = None,
    cache: ImageCache | None = None,
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """Augmented batches of one epoch, by threads: (image indices int64 [N], images uint8 [N, S, S, 3]).

    Each sample's randomness comes from `key` (seed, epoch, rank) and its position in the epoch,
    so neither the number of workers nor starting at batch `first` changes anything.

    Raises ImageError naming a file that cannot be decoded, unless `bad` replaces it.
    """
    samples = Samples(augment, preprocess, cache or ImageCache(0))

    def fill(job: tuple[Batch, slice]) -> None:
        batch, rows = job
        files = [paths[i] for i in batch.indices[rows].tolist()]
        failures = samples.fill(batch.images[rows], files, key, batch.first + rows.start)
        batch.replace(failures, paths, samples, key, bad)

    def groups() -> Iterator[list[tuple[Batch, slice]]]:
        for position, indices in numbered(batches, first):
            images = np.empty((len(indices), preprocess.size, preprocess.size, 3), np.uint8)
            batch = Batch(position, indices, images)
            yield [(batch, rows) for rows in slices(len(indices), workers)]

    for jobs, _ in prefetch_map(groups(), fill, workers):
        yield jobs[0][0].indices, jobs[0][0].images


def evaluation_batches(
    paths: Sequence[str], preprocess: Preprocess, batch_size: int, workers: int, rank: int = 0, size: int = 1
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
    """All images in order, not augmented: (indices int64 [N], images uint8 [N, S, S, 3]).

    Each of several processes takes every size-th batch, so that the batches are those of a single process.
    """
    starts = range(0, len(paths), batch_size)[rank::size]

    def load(job: tuple[Batch, slice]) -> None:
        batch, rows = job
        for row in range(rows.start, rows.stop):
            image = preprocess.resize(read_bgr(paths[batch.first + row]))
            # Each channel is resized alone, so the order of resizing and exchanging them changes nothing but time.
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=batch.images[row])

    def groups() -> Iterator[list[tuple[Batch, slice]]]:
        for start in starts:
            indices = np.arange(start, min(start + batch_size, len(paths)), dtype=np.int64)
            images = np.empty((len(indices), preprocess.size, preprocess.size, 3), np.uint8)
            batch = Batch(start, indices, images)
            yield [(batch, rows) for rows in slices(len(indices), workers)]

    for jobs, _ in prefetch_map(groups(), load, workers):
        yield jobs[0][0].indices, jobs[0][0].images
