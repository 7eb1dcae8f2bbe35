"""What a service answers with: a model and its gallery, exchanged together."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from paddlex_feat.errors import FeatError, GalleryError
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.runtime.malloc import give_memory_back
from paddlex_feat.search.answers import Answer
from paddlex_feat.search.place import Place
from paddlex_feat.search.problems import REBUILT
from paddlex_feat.serving.batching import Batcher, Question
from paddlex_feat.serving.clients import ClientGalleries

log = logging.getLogger(__name__)
RETRY_SECONDS = 5  # until a model that could not be loaded is tried again
EXCHANGES = 2  # of the gallery within one request that it gets over
_T = TypeVar("_T")


class Pair:
    """A model with its gallery. Requests that have begun with it end with it.

    Args:
        place: of the gallery.
        model: of its features.
        closing: does the closing, for which the event loop must not wait.
    """

    def __init__(self, place: Place, model: Predictor, closing: Executor):
        self.model = model
        self.gallery = place.create(model)
        self.batcher = Batcher(model, self.gallery)
        self._using = 0
        self._retired = False
        self._lock = threading.Lock()
        self._closing = closing

    @contextmanager
    def used(self) -> Iterator[Pair]:
        """While it is used it stays open. Raises GalleryError for one that is closed already."""
        with self._lock:
            if self._retired and not self._using:
                raise GalleryError("The gallery was exchanged.", fix="Ask again.", code=REBUILT)
            self._using += 1
        try:
            yield self
        finally:
            with self._lock:
                self._using -= 1
                last = self._retired and not self._using
            if last:
                self._closing.submit(self._close)

    def retire(self) -> None:
        """Close it once nobody uses it."""
        with self._lock:
            last = not self._retired and not self._using
            self._retired = True
        if last:
            self._closing.submit(self._close)

    def _close(self) -> None:
        try:
            self.batcher.close()
            self.gallery.close()
        except Exception:
            log.exception("A gallery could not be closed")  # its thread would say nothing
        # A reference to this pair must not keep its model in memory.
        del self.model, self.batcher, self.gallery
        gc.collect()  # a model has references in circles, which Python looks for seldom
        give_memory_back()


class State:
    """The present pair, which is exchanged when the gallery has been built anew with another model.

    Args:
        place: of the gallery.
        load: makes the model anew.

    Attributes:
        clients: the galleries of PaddleX's clients.
    """

    def __init__(self, place: Place, load: Callable[[], Predictor]):
        self._place, self._load = place, load
        self._changing = threading.Lock()
        # One thread makes and closes all pairs: the C library keeps memory apart, and for good, for each that does.
        self._exchanging = ThreadPoolExecutor(1, "exchanging")
        self._pair = self._exchanging.submit(self._made).result()
        self._failed: tuple[float, FeatError] | None = None  # when the new model could not be loaded, and why
        self.clients = ClientGalleries(place)

    def run(self, work: Callable[[Pair], _T]) -> _T:
        """Call `work` with the present pair; again with the new one if `work` finds that the gallery was exchanged.

        Raises what `work` does, and GalleryError or WeightsError if the new model cannot be loaded.
        """
        pair = self._pair
        for _ in range(EXCHANGES):
            try:
                with pair.used():
                    return work(pair)
            except GalleryError as error:
                if error.code != REBUILT:
                    raise
            pair = self._exchanged(pair)
        with pair.used():
            return work(pair)

    async def answer(self, question: Question) -> Answer:
        """The answer to a question, with the present pair or, as in `run`, with the new one."""
        pair = self._pair
        for _ in range(EXCHANGES):
            try:
                with pair.used():
                    return await asyncio.wrap_future(pair.batcher.answer(question))
            except GalleryError as error:
                if error.code != REBUILT:
                    raise
            pair = await asyncio.to_thread(self._exchanged, pair)
        with pair.used():
            return await asyncio.wrap_future(pair.batcher.answer(question))

    def check(self) -> None:
        """Raise GalleryError if there is no gallery. One that is being exchanged is there."""
        try:
            with self._pair.used() as pair:
                len(pair.gallery)
        except GalleryError as error:
            if error.code != REBUILT:
                raise

    def _made(self) -> Pair:
        return Pair(self._place, self._load(), self._exchanging)

    def _exchanged(self, former: Pair) -> Pair:
        with self._changing:
            if self._pair is former:
                if self._failed and time.monotonic() < self._failed[0] + RETRY_SECONDS:
                    raise self._failed[1].with_traceback(None)
                try:
                    self._pair = self._exchanging.submit(self._made).result()
                except Exception as error:
                    failure = self._explained(error)
                    self._failed = time.monotonic(), failure
                    log.warning("The gallery was exchanged, and its model cannot be loaded: %s", failure)
                    raise failure from error
                self._failed = None
                self.clients.forget()
                former.retire()
                log.info("The gallery was exchanged; its model is used from now on")
            return self._pair

    def _explained(self, error: Exception) -> FeatError:
        if isinstance(error, FeatError):
            return error
        what = f"The model of the exchanged gallery could not be loaded ({type(error).__name__}: {error})."
        fix = "See whether the model's files are whole; it is tried again."
        return GalleryError(what, where=str(self._place), fix=fix, code="model-exchange")

    def close(self) -> None:
        """End."""
        self._pair.retire()
        self.clients.forget()
