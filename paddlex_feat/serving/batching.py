"""One thread that computes features: images of requests that arrive together are one batch."""

from __future__ import annotations

import queue
import threading
from concurrent.futures import Future

import numpy as np

from paddlex_feat.inference.predictor import Predictor

MAX_BATCH = 8  # images: the engines' rate on a CPU does not rise beyond


class Batcher:
    """Computes features of images from several threads.

    Args:
        model: pixels to features.
    """

    def __init__(self, model: Predictor):
        self._model = model
        self._waiting: queue.Queue[tuple[np.ndarray, Future[np.ndarray]] | None] = queue.Queue()
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
        while (first := self._waiting.get()) is not None:
            batch, last = [first], False
            while len(batch) < MAX_BATCH and not last:
                try:
                    following = self._waiting.get_nowait()
                except queue.Empty:
                    break
                if following is None:
                    last = True
                else:
                    batch.append(following)
            self._compute(batch)
            if last:
                return

    def _compute(self, batch: list[tuple[np.ndarray, Future[np.ndarray]]]) -> None:
        try:
            rows = self._model.features_of(np.stack([image for image, _ in batch]))
        except Exception as error:  # noqa: BLE001 - each request gets it
            for _, done in batch:
                done.set_exception(error)
            return
        self.batches, self.images = self.batches + 1, self.images + len(batch)
        for (_, done), row in zip(batch, rows, strict=True):
            done.set_result(row)
