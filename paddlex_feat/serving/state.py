"""What a service answers with: a model and its gallery, exchanged together, and the galleries of PaddleX's clients."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TypeVar

from paddlex_feat.errors import FeatError, GalleryError
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.runtime.malloc import give_memory_back
from paddlex_feat.search.answers import Answer
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.place import Place
from paddlex_feat.search.problems import REBUILT
from paddlex_feat.serving.batching import Batcher, Question

log = logging.getLogger(__name__)
RETRY_SECONDS = 5  # until a model that could not be loaded is tried again
EXCHANGES = 2  # of the gallery within one request that it gets over
MAX_OPEN = 16  # galleries of PaddleX's clients that are kept in memory
_T = TypeVar("_T")
_KEY = re.compile(r"[0-9a-f]{32}")


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
            self._retired, last = True, not self._using
        if last:
            self._closing.submit(self._close)

    def _close(self) -> None:
        try:
            self.batcher.close()
            self.gallery.close()
        except Exception:
            log.exception("A gallery that had been exchanged could not be closed")  # its thread would say nothing
        # A reference to this pair must not keep its model in memory.
        del self.model, self.batcher, self.gallery
        gc.collect()  # a model has references in circles, which Python looks for seldom
        give_memory_back()


class State:
    """The present pair, and galleries by key.

    Args:
        place: of the gallery.
        load: makes the model anew, when the gallery has been built anew with another.
    """

    def __init__(self, place: Place, load: Callable[[], Predictor]):
        self._place, self._load = place, load
        self._changing = threading.Lock()
        self.numbering = threading.Lock()  # held while PaddleX's number of a new image is chosen
        # One thread makes and closes all pairs: the C library keeps memory apart, and for good, for each that does.
        self._pairs = ThreadPoolExecutor(1, "exchanging")
        self._pair = self._pairs.submit(self._made).result()
        self._failed: tuple[float, FeatError] | None = None  # when the new model could not be loaded, and why
        self._others: OrderedDict[str, Gallery] = OrderedDict()

    @contextmanager
    def current(self) -> Iterator[Pair]:
        """The pair for one request, a new one if the gallery has been built anew. Raises GalleryError, WeightsError."""
        with ExitStack() as using:
            pair = self._pair
            try:
                using.enter_context(pair.used())
                len(pair.gallery)
            except GalleryError as error:
                if error.code != REBUILT:
                    raise
                using.close()
                pair = self._exchanged(pair)
                using.enter_context(pair.used())
            yield pair

    def run(self, work: Callable[[Pair], _T]) -> _T:
        """Call `work` with the present pair; again with the new one if `work` finds that the gallery was exchanged."""
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

    def _made(self) -> Pair:
        return Pair(self._place, self._load(), self._pairs)

    def _exchanged(self, former: Pair) -> Pair:
        with self._changing:
            if self._pair is former:
                if self._failed and time.monotonic() < self._failed[0] + RETRY_SECONDS:
                    raise self._failed[1]
                try:
                    self._pair = self._pairs.submit(self._made).result()
                except FeatError as error:
                    self._failed = time.monotonic(), error
                    log.warning("The gallery was exchanged, and its model cannot be loaded: %s", error)
                    raise
                self._failed = None
                former.retire()
                log.info("The gallery was exchanged; its model is used from now on")
            return self._pair

    def new(self, model: Predictor) -> tuple[str, Gallery]:
        """An empty gallery of a client's own for features of a model, and its key."""
        key = uuid.uuid4().hex
        with self._changing:
            return key, self._kept(key, self._place.of_client(key).create(model))

    def of_key(self, key: str | None, model: Predictor) -> Gallery:
        """The gallery of a key. Raises GalleryError for one that does not exist, or has another model's features."""
        with self._changing:
            if key is not None and key in self._others:
                self._others.move_to_end(key)
                self._others[key].require_same(model.identity)
                return self._others[key]
            try:
                if key is not None and _KEY.fullmatch(key):
                    return self._kept(key, self._place.of_client(key).open(model))
            except GalleryError as error:
                if error.code != "gallery-missing":
                    raise
            what = "The indexKey is not one of this service."
            raise GalleryError(what, where="indexKey", fix="Give the one that build answered.", code="key-unknown")

    def _kept(self, key: str, gallery: Gallery) -> Gallery:
        self._others[key] = gallery
        while len(self._others) > MAX_OPEN:
            self._others.popitem(last=False)  # closed when the last request lets it go
        return gallery

    def close(self) -> None:
        """End."""
        self._pair.retire()
