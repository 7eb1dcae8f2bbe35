"""One thread that computes features: images of requests that arrive together are one batch."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import Future

import numpy as np

from paddlex_feat.inference.predictor import Predictor

MAX_BATCH = 8  # images: the engines' rate on a CPU does not rise beyond
MAX_DELAY = 0.02  # seconds that a batch waits for more images, where the former one had several
PATIENCE = 32  # batches until a larger one is tried again, after one has waited in vain
_Waiting = tuple[np.ndarray, Future[np.ndarray]]  # an image, reduced, and who waits for its feature


class Batcher:
    """Computes features of images from several threads.

    Args:
        model: pixels to features.
    """

    def __init__(self, model: Predictor):
        self._model = model
        self._waiting: queue.Queue[_Waiting | None] = queue.Queue()
        self.batches = self.images = 0  # done so far
        self._thread = threading.Thread(target=self._run, name="embedding", daemon=True)
        self._thread.start()

    def feature(self, image: np.ndarray) -> np.ndarray:
        """The feature of a decoded image, uint8 [H, W, 3] in BGR order: float32 [D]."""
        done: Future[np.ndarray] = Future()
        self._waiting.put((self._model.reduce(image), done))
        return done.result()

    def close(self) -> None:
        """Compute what is waiting, and end the thread."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        wanted, tries, going_on = 1, 0, True
        while going_on and (first := self._waiting.get()) is not None:
            batch, going_on = self._batch(first, wanted)
            self._compute(batch)
            tries = PATIENCE if len(batch) < wanted else max(tries - 1, 0)  # it has waited in vain
            wanted = len(batch) if tries else min(2 * len(batch), MAX_BATCH)
            if len(batch) == 1:
                wanted = 1  # a client alone is never delayed

    def _batch(self, first: _Waiting, wanted: int) -> tuple[list[_Waiting], bool]:
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

    def _compute(self, batch: list[_Waiting]) -> None:
        try:
            rows = self._model.features_of(np.stack([image for image, _ in batch]))
        except Exception as error:  # noqa: BLE001 - each request gets it
            for _, done in batch:
                done.set_exception(error)
            return
        self.batches, self.images = self.batches + 1, self.images + len(batch)
        for (_, done), row in zip(batch, rows, strict=True):
            done.set_result(row)
