"""Raw pixels as a baseline, and features averaged over mirror images, on extractors made of NumPy."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation import baseline
from paddlex_feat.evaluation.baseline import DIM, SIDE, PixelRecorder, affordable, better_in
from paddlex_feat.evaluation.evaluator import Evaluator
from paddlex_feat.evaluation.metrics import RetrievalMetrics
from paddlex_feat.inference.mirror import MirrorAverage
from paddlex_feat.runtime.distributed import ProcessGroup

SIZE = 32


class Columns:
    """Features that a mirror image changes: the mean of each column."""

    preprocess = Preprocess(SIZE)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        rows = images.astype(np.float32).mean(axis=(1, 3))
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class Worthless(Columns):
    """The same feature for every image."""

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return np.eye(1, 8, dtype=np.float32).repeat(len(images), axis=0)


class Ranks:
    """A group of processes of which one runs here; the others' rows are given."""

    rank, size = 0, 2

    def __init__(self, others: np.ndarray):
        self._others = others

    def all_gather_rows(self, rows: np.ndarray) -> list[np.ndarray]:
        return [rows, self._others]


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """uint8 [count, SIZE, SIZE, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def by_hand(images: np.ndarray) -> np.ndarray:
    """The baseline's features written plainly: means of 2 x 2 pixels, less the mean, unit length."""
    small = images.reshape(len(images), SIDE, 2, SIDE, 2, 3).astype(np.float64).mean(axis=(2, 4))
    rows = np.floor(small + 0.5).reshape(len(images), DIM)
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def lists(tmp_path: Path) -> dict[str, ImageList]:
    """Four classes of noise, whose queries are darker copies of their gallery image."""
    records = {}
    for name, factor in (("gallery", 1.0), ("query", 0.5)):
        for label, image in enumerate(pictures(4)):
            cv2.imwrite(str(tmp_path / f"{name}{label}.png"), (image * factor).astype(np.uint8))
        paths = [f"{name}{label}.png" for label in range(4)]
        records[name] = ImageList(name, tmp_path, paths, list(range(4)), list(range(1, 5)))
    return records


def test_pixels_are_those_of_the_plain_computation():
    """The recorder passes features on, and its own rows are the pixels less their mean at unit length."""
    images = pictures(5)
    record = PixelRecorder(Columns())
    found = np.concatenate([record(images[:3]), record(images[3:])])
    assert np.array_equal(found, Columns()(images))
    assert np.abs(record.features(5, 3, ProcessGroup()) - by_hand(images)).max() < 1e-3
    assert np.abs(np.linalg.norm(record.features(5, 3, ProcessGroup()), axis=1) - 1).max() < 1e-6


def test_several_processes_give_the_rows_of_one():
    """Whole batches are dealt to the ranks by turns."""
    images, alone, other = pictures(7), PixelRecorder(Columns()), PixelRecorder(Columns())
    alone(images)
    expected = alone.features(7, 2, ProcessGroup())
    own = PixelRecorder(Columns())
    own(images[[0, 1]]), own(images[[4, 5]])
    other(images[[2, 3, 6]])
    found = own.features(7, 2, Ranks(other._batches[0]))  # type: ignore[arg-type]
    assert np.array_equal(found, expected)


def test_an_image_of_one_colour_has_no_direction():
    """Its row is zero, not NaN."""
    record = PixelRecorder(Columns())
    record(np.full((1, SIZE, SIZE, 3), 77, np.uint8))
    assert not record.features(1, 1, ProcessGroup()).any()


def test_the_evaluator_ranks_raw_pixels_of_the_same_lists(lists: dict[str, ImageList]):
    """Darker copies are found by their pixels, and not by a network that gives everything one feature."""
    evaluate = Evaluator(lists, 2, 1)
    found = evaluate(Worthless(), baseline=True)
    assert found.baseline is not None
    assert found.baseline.main() == {"recall1": 1.0, "recall5": 1.0, "mAP": 1.0}
    assert found.main_metrics()["recall1"] == 0
    assert "recall1 1.000 against 0.000" in better_in(found.baseline, found.metrics)
    assert evaluate(Worthless()).baseline is None


def test_long_lists_have_no_baseline(lists: dict[str, ImageList], monkeypatch: pytest.MonkeyPatch, caplog):
    """A ranking that would take longer than the embedding is left out, and that is logged."""
    assert affordable(10_000, 10_000, 2**31)
    assert not affordable(20_000, 20_000, 2**31)
    assert not affordable(1, 300_000, 2**31)
    monkeypatch.setattr(baseline, "MAX_PAIRS", 15)
    with caplog.at_level("INFO"):
        assert Evaluator(lists, 2, 1)(Columns(), baseline=True).baseline is None
    assert "too long" in caplog.text


def test_only_the_metrics_in_which_pixels_are_better_are_named():
    """A tie is not better; without a baseline nothing is."""
    own, raw = (RetrievalMetrics({1: first, 5: 0.9}, mean, 0.5, 0.5, 10, 0) for first, mean in ((0.7, 0.6), (0.8, 0.5)))
    assert better_in(raw, own) == ["recall1 0.800 against 0.700"]
    assert better_in(None, own) == []


def test_mirror_average_is_that_done_by_hand():
    """unit(mean of unit(f(x)), unit(f(mirrored x))), and the same for an image and its mirror image."""
    images, extract = pictures(3), Columns()
    both = extract(images).astype(np.float64) + extract(images[:, :, ::-1])
    found = MirrorAverage(extract)(images)
    assert found.dtype == np.float32
    assert np.abs(found - both / np.linalg.norm(both, axis=1, keepdims=True)).max() < 1e-6
    assert np.array_equal(found, MirrorAverage(extract)(images[:, :, ::-1]))
    assert MirrorAverage(extract).preprocess is extract.preprocess
