"""Batches of the service: each request gets its own answer, or its own error."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest

from paddlex_feat.errors import GalleryError, ImageError
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.serving.batching import MAX_BATCH, Batcher, Question

BAD_ENGINE, NO_FEATURE = 251, 252  # images for which the engine, or the gallery, fails


class Model:
    """The feature of an image is its first number; batches are noted."""

    def __init__(self):
        self.sizes: list[int] = []

    def reduce(self, image: np.ndarray) -> np.ndarray:
        return image

    def features_of(self, images: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images))
        if images.max() == BAD_ENGINE:
            return np.zeros((len(images) + 1, 1), np.float32)
        return images.reshape(len(images), -1)[:, :1].astype(np.float32)


class Gallery:
    """An answer is what was asked."""

    def answers(self, features, topk, threshold, names, boxes):
        if topk == 13:
            raise GalleryError("It was exchanged.", code="gallery-rebuilt")
        if (features == NO_FEATURE).any():
            raise GalleryError("It is not finite.", code="vector-unusable")
        return [SimpleNamespace(feature=float(row[0]), topk=topk, least=threshold, box=b)
                for row, b in zip(features, boxes, strict=True)]  # fmt: skip


@pytest.fixture
def batcher():
    made = Batcher(Model(), Gallery())
    yield made
    made.close()


def image(number: int) -> np.ndarray:
    return np.full((2, 2, 3), number, np.uint8)


def broken() -> np.ndarray:
    raise ImageError("The image is not base64.", code="image-not-base64")


def test_each_question_gets_its_own_answer(batcher):
    asked = [Question(lambda n=n: image(n), 1 + n % 3, None if n % 2 else 0.5, (n,)) for n in range(50)]
    for n, done in enumerate([batcher.answer(question) for question in asked]):
        found = done.result(10)
        assert (found.feature, found.topk, found.least, found.box) == (n, 1 + n % 3, None if n % 2 else 0.5, (n,))
    assert batcher.images == sum(batcher._model.sizes) == 50
    assert 1 < max(batcher._model.sizes) <= MAX_BATCH and batcher.batches == len(batcher._model.sizes)


def test_an_error_is_that_of_its_request_alone(batcher):
    good = [batcher.answer(Question(lambda n=n: image(n), 1, None)) for n in range(4)]
    wrong = batcher.answer(Question(broken, 1, None))
    refused = batcher.answer(Question(lambda: image(9), 13, None))
    good += [batcher.answer(Question(lambda n=n: image(n), 1, None)) for n in range(4, 8)]
    assert [done.result(10).feature for done in good] == list(range(8))
    assert wrong.exception(10).code == "image-not-base64" and refused.exception(10).code == "gallery-rebuilt"


def test_a_feature_that_cannot_be_used_fails_no_neighbour(batcher):
    asked = [image(n) for n in (0, 1, NO_FEATURE, 3, 4, 5)]
    waiting = [batcher.answer(Question(lambda i=i: i, 1, None)) for i in asked]
    assert waiting[2].exception(10).code == "vector-unusable"
    assert [waiting[n].result(10).feature for n in (0, 1, 3, 4, 5)] == [0, 1, 3, 4, 5]


def test_a_fault_of_the_engine_is_the_requests_error_and_the_next_ones_are_answered(batcher):
    assert isinstance(batcher.answer(Question(lambda: image(BAD_ENGINE), 1, None)).exception(10), ValueError)
    assert batcher.answer(Question(lambda: image(5), 1, None)).result(10).feature == 5


def test_few_pictures_are_in_memory_at_once(batcher):
    """Those that are being read; what waits is what the requests have sent."""
    alive, most, lock = 0, 0, threading.Lock()

    def read() -> np.ndarray:
        nonlocal alive, most
        with lock:
            alive += 1
            most = max(most, alive)
        time.sleep(0.005)
        return image(1)

    def view(seen: np.ndarray) -> int:
        nonlocal alive
        with lock:
            alive -= 1
        return int(seen[0, 0, 0])

    with ThreadPoolExecutor(8) as clients:
        found = [f.result(30) for f in [clients.submit(batcher.features, [read] * 8, view) for _ in range(8)]]
    assert all(part == [(1, 1)] * 8 for part in found) and 1 <= most <= cpu_count()


def test_one_whose_client_has_gone_is_left_out(batcher):
    waiting = [batcher.answer(Question(lambda n=n: image(n), 1, None)) for n in range(40)]
    gone = [done for done in waiting if done.cancel()]
    for done in waiting:
        if done in gone:
            with pytest.raises(CancelledError):
                done.result(10)
        else:
            done.result(10)
    assert gone
    assert batcher.features([lambda: image(7)], lambda seen: seen.shape) == [(7, (2, 2, 3))]


def test_what_waits_is_answered_before_it_ends():
    batcher = Batcher(Model(), Gallery())
    waiting = [batcher.answer(Question(lambda n=n: image(n), 1, None)) for n in range(20)]
    batcher.close()
    assert [done.result(0).feature for done in waiting] == list(range(20))
