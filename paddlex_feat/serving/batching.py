"""One thread that computes features and searches with them: requests that arrive together are one batch.

A thread for each request would cost more than its search of a small gallery: they wait for each other's turn in Python.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from paddlex_feat.data.images.source import Box
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.search.answers import Answer
from paddlex_feat.search.gallery import Gallery

MAX_BATCH = 8  # images: the engines' rate on a CPU does not rise beyond
MAX_DELAY = 0.02  # seconds that a batch waits for more images, where the former one had several
_T = TypeVar("_T")
PATIENCE = 32  # batches until a larger one is tried again, after one has waited in vain


@dataclass(frozen=True)
class Question:
    """A search.

    Attributes:
        read: gives the image, uint8 [H, W, 3] in BGR order.
        topk: number of hits.
        threshold: as of `Gallery.answers`.
        box: the part of the picture that the image is, for the answer.
    """

    read: Callable[[], np.ndarray]
    topk: int
    threshold: float | str | None
    box: Box | None = None


@dataclass(eq=False)
class _Job:
    """An image and what is wanted of it: an answer, or its feature if nothing is asked.

    Attributes:
        image: reduced to what the model reads, and what the caller wants to see of it.
        question: the search; None: there is none.
        done: the answer; or the feature and what the caller sees.
    """

    image: Future[tuple[np.ndarray, Any]]
    question: Question | None
    done: Future[Any] = field(default_factory=Future)


class Batcher:
    """Computes features, and answers questions, of several threads.

    Args:
        model: pixels to features.
        gallery: that is searched.
    """

    def __init__(self, model: Predictor, gallery: Gallery):
        self._model, self._gallery = model, gallery
        self._waiting: queue.Queue[_Job | None] = queue.Queue()
        self.batches = self.images = 0  # done so far
        self._readers = ThreadPoolExecutor(cpu_count(), "reading")
        self._thread = threading.Thread(target=self._run, name="embedding", daemon=True)
        self._thread.start()

    def answer(self, question: Question) -> Future[Answer]:
        """The answer to a question, later; it is named "image"."""
        return self._put(question.read, lambda _: None, question)

    def features(
        self, reads: Sequence[Callable[[], np.ndarray]], view: Callable[[np.ndarray], _T]
    ) -> list[tuple[np.ndarray, _T]]:
        """The feature, float32 [D], of each image, and what `view` makes of its pixels.

        Args:
            reads: each gives an image, uint8 [H, W, 3] in BGR order. The readers call them, so that few are in memory.
            view: called with each image.
        """
        waiting = [self._put(read, view) for read in reads]
        return [done.result() for done in waiting]

    def close(self) -> None:
        """Answer what is waiting, and end the threads."""
        self._waiting.put(None)
        self._thread.join()
        self._readers.shutdown()

    def _put(
        self, read: Callable[[], np.ndarray], view: Callable[[np.ndarray], Any], question: Question | None = None
    ) -> Future[Any]:
        def reduced() -> tuple[np.ndarray, Any]:
            image = read()
            return self._model.reduce(image), view(image)

        job = _Job(self._readers.submit(reduced), question)
        self._waiting.put(job)
        return job.done

    def _run(self) -> None:
        wanted, tries, going_on = 1, 0, True
        while going_on and (first := self._waiting.get()) is not None:
            batch, going_on = self._batch(first, wanted)
            self._work(batch)
            tries = PATIENCE if len(batch) < wanted else max(tries - 1, 0)  # it has waited in vain
            wanted = len(batch) if tries else min(2 * len(batch), MAX_BATCH)
            if len(batch) == 1:
                wanted = 1  # a client alone is never delayed
            del first, batch  # else their images stay until others come

    def _batch(self, first: _Job, wanted: int) -> tuple[list[_Job], bool]:
        """What is computed together, and whether more may come.

        Clients that have just been answered ask again within milliseconds: so many images as are wanted are waited
        for, MAX_DELAY seconds at most.
        """
        batch, deadline = [first], time.monotonic() + MAX_DELAY
        while len(batch) < MAX_BATCH:
            left = deadline - time.monotonic() if len(batch) < wanted else 0
            try:
                following = self._waiting.get(left > 0, max(left, 0) or None)
            except queue.Empty:
                break
            if following is None:
                return batch, False
            batch.append(following)
        return batch, True

    def _work(self, batch: list[_Job]) -> None:
        """Do what a batch asks. Its images are waited for in turn, so a slow one holds up its batch."""
        jobs = [job for job in batch if job.done.set_running_or_notify_cancel() and self._is_read(job)]
        try:
            if jobs:
                self._answer_all(jobs)
        except Exception as error:  # noqa: BLE001 - each request gets it, and the thread lives on
            for job in jobs:
                if not job.done.done():
                    job.done.set_exception(error)

    def _answer_all(self, jobs: list[_Job]) -> None:
        images = [job.image.result() for job in jobs]
        rows = self._model.features_of(np.stack([reduced for reduced, _ in images]))
        self.batches, self.images = self.batches + 1, self.images + len(jobs)
        asked: dict[tuple[int, float | str | None], list[tuple[_Job, np.ndarray]]] = {}
        for job, row, (_, seen) in zip(jobs, rows, images, strict=True):
            if job.question is None:
                job.done.set_result((row, seen))
            else:
                asked.setdefault((job.question.topk, job.question.threshold), []).append((job, row))
        for (topk, threshold), pairs in asked.items():
            self._answer([job for job, _ in pairs], np.stack([row for _, row in pairs]), topk, threshold)

    def _is_read(self, job: _Job) -> bool:
        """Wait for the image; an error is that of its request alone."""
        error = job.image.exception()
        if error is not None:
            job.done.set_exception(error)
        return error is None

    def _answer(self, jobs: list[_Job], rows: np.ndarray, topk: int, threshold: float | str | None) -> None:
        boxes = [job.question.box if job.question else None for job in jobs]
        try:
            answers = self._gallery.answers(rows, topk, threshold, ["image"] * len(jobs), boxes)
        except Exception as error:  # noqa: BLE001 - the request gets it
            if len(jobs) == 1:
                jobs[0].done.set_exception(error)
            else:  # it may be about one of them
                for number, job in enumerate(jobs):
                    self._answer([job], rows[number : number + 1], topk, threshold)
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.done.set_result(answer)
