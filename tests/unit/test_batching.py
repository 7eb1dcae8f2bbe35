"""Batches of the service: each request gets its own answer, or its own error."""

from __future__ import annotations

from concurrent.futures import CancelledError
from types import SimpleNamespace

import numpy as np
import pytest

from paddlex_feat.errors import GalleryError, ImageError
from paddlex_feat.serving.batching import MAX_BATCH, Batcher, Question


class Model:
    """The feature of an image is its first number; batches are noted."""

    def __init__(self):
        self.sizes: list[int] = []

    def reduce(self, image: np.ndarray) -> np.ndarray:
        return image

    def features_of(self, images: np.ndarray) -> np.ndarray:
        self.sizes.append(len(images))
        return images.reshape(len(images), -1)[:, :1].astype(np.float32)


class Gallery:
    """An answer is what was asked."""

    def answers(self, features, topk, threshold, names, boxes):
        if topk == 13:
            raise GalleryError("It was exchanged.", code="gallery-rebuilt")
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


def test_one_whose_client_has_gone_is_left_out(batcher):
    waiting = [batcher.answer(Question(lambda n=n: image(n), 1, None)) for n in range(40)]
    gone = [done for done in waiting if done.cancel()]
    for done in waiting:
        if done in gone:
            with pytest.raises(CancelledError):
                done.result(10)
        else:
            done.result(10)
    assert batcher.features([image(7)])[0] == 7


def test_what_waits_is_answered_before_it_ends():
    batcher = Batcher(Model(), Gallery())
    waiting = [batcher.answer(Question(lambda n=n: image(n), 1, None)) for n in range(20)]
    batcher.close()
    assert [done.result(0).feature for done in waiting] == list(range(20))
