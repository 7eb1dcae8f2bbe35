"""A run delivers the weights it started from unless an epoch is better; validation on held-out training images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from paddlex_feat.data.lists.holdout import hold_out
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import DatasetError

paddle = pytest.importorskip("paddle")

from test_trainer import latest, metrics, trainer

from paddlex_feat.errors import EvaluationError, Interrupted, TrainingError
from paddlex_feat.models import weights
from paddlex_feat.training import checkpoint
from paddlex_feat.training.delivery import delivery
from paddlex_feat.training.metrics_file import metrics_until

FROM_WEIGHTS = {"eval_start": True, "start_counts": True}


def best(root: Path) -> checkpoint.Progress:
    return checkpoint.read_progress(root / "best_model/best_model.pdstates")


@pytest.mark.parametrize(
    ("recalls", "delivered"),
    [([0.9, 0.8, 0.7, 0.8], 0), ([0.9, 0.9, 0.1, 0.9], 0), ([0.9, 0.8, 0.95, 0.95], 3), ([0.0, 0.0, 0.0, 0.0], 0)],
)
def test_the_start_is_delivered_unless_an_epoch_is_better(tmp_path, recalls, delivered):
    own = trainer(tmp_path, lambda _, left=list(recalls): metrics(left.pop(0)), **FROM_WEIGHTS)
    start = {name: tensor.numpy().copy() for name, tensor in own.state.weights().items()}
    own.fit()
    found = delivery(own.state.progress)
    assert found == {
        "delivered": "epoch" if delivered else "start",
        "delivered_epoch": delivered,
        "start": metrics(recalls[0]),
        "adapted": None,
    }
    assert best(tmp_path).epoch == delivered and best(tmp_path).last_recall1 == max(recalls)
    kept = weights.read(tmp_path / "best_model/best_model.pdparams")
    assert all(np.array_equal(kept[name], start[name]) for name in start) == (not delivered)
    assert (tmp_path / "best_model/inference/inference.json").is_file()


def test_random_weights_are_measured_but_never_delivered(tmp_path):
    own = trainer(tmp_path, lambda _, left=[0.9, 0.1, 0.1, 0.1]: metrics(left.pop(0)), eval_start=True)
    own.fit()
    assert best(tmp_path).epoch == 3 and delivery(own.state.progress)["start"] is None


@pytest.mark.parametrize("stopped", ["while the start is measured", "in epoch 1", "in epoch 2"])
def test_a_resumed_run_keeps_the_start_and_does_not_measure_it_again(tmp_path, stopped):
    measured = []

    def evaluate(_):
        if stopped == "while the start is measured":
            raise Interrupted("Interrupted.")
        measured.append(own.state.progress.epoch)
        own.stop.received = len(measured) == (1 if stopped == "in epoch 1" else 2)
        return metrics(0.5 if own.state.progress.step else 0.9)

    own = trainer(tmp_path, evaluate, **FROM_WEIGHTS)
    with pytest.raises(Interrupted):
        own.fit()
    saved = latest(tmp_path)
    assert saved.start == (metrics(0.9) if measured else {})
    again = trainer(
        tmp_path,
        lambda _: measured.append(again.state.progress.epoch) or metrics(0.5 if again.state.progress.step else 0.9),
        saved,
        **FROM_WEIGHTS,
    )
    again.fit()
    assert measured == [0, 1, 2, 3] and best(tmp_path).epoch == 0
    assert delivery(again.state.progress)["delivered"] == "start"


def test_early_stopping_counts_from_the_start(tmp_path):
    own = trainer(tmp_path, lambda _, left=[0.9, 0.5, 0.6]: metrics(left.pop(0)), early_stopping=2, **FROM_WEIGHTS)
    own.fit()
    assert own.state.progress.epoch == 2 and own.state.progress.best_epoch == 0


@pytest.mark.parametrize(("error", "code"), [(TrainingError, "loss-not-finite"), (EvaluationError, "not-finite")])
def test_a_failed_training_leaves_the_best_weights_and_names_them(tmp_path, error, code):
    def evaluate(_):
        if own.state.progress.step:
            raise error("It failed.", fix="Lower the rate.", code=code)
        return metrics(0.9)

    own = trainer(tmp_path, evaluate, **FROM_WEIGHTS)
    with pytest.raises(error) as caught:
        own.fit()
    assert caught.value.code == code and caught.value.result["delivered"] == "start"
    assert caught.value.fix.startswith("Lower the rate. best_model holds the weights that training started from")
    assert best(tmp_path).epoch == 0


def test_equal_recalls_of_validation_images_are_decided_by_map(tmp_path):
    figures = [{"recall1": 1.0, "recall5": 1.0, "mAP": x} for x in (0.8, 0.7, 0.9, 0.85)]
    own = trainer(tmp_path, lambda _: figures.pop(0), validation=True, **FROM_WEIGHTS)
    own.fit()
    assert best(tmp_path).epoch == 2 and own.state.progress.evals_since_best == 1
    rows = [json.loads(line) for line in metrics_until(tmp_path / "metrics.jsonl")]
    assert [row["epoch"] for row in rows if row.get("set") == "validation"] == [0, 1, 2, 3]
    assert (tmp_path / "curves.png").is_file()


def images(counts: list[int]) -> ImageList:
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    order = np.random.default_rng(1).permutation(len(labels))
    names = [f"{i}.jpg" for i in range(len(labels))]
    return ImageList("train", Path("root"), names, [labels[i] for i in order], [i + 1 for i in range(len(labels))])


@pytest.mark.parametrize("by", ["classes", "images"])
def test_held_out_images_are_not_trained_on_and_each_can_be_found(by):
    whole = images([1, 3, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10, 10])
    trained, held = hold_out(whole, 20, by, 42)
    assert sorted(trained.paths + held.paths) == sorted(whole.paths) and held.paths
    for part in (trained, held):
        assert [whole.where(whole.paths.index(path)) for path in part.paths] == [
            part.where(i) for i in range(len(part))
        ]
        assert [whole.labels[whole.paths.index(path)] for path in part.paths] == part.labels
    assert min(held.labels.count(label) for label in held.labels) >= 2
    shared = set(trained.labels) & set(held.labels)
    assert shared == (set() if by == "classes" else set(held.labels))
    assert len(held) in ((20, 12, 13) if by == "classes" else (22,))
    assert hold_out(whole, 20, by, 42)[1].paths == held.paths != hold_out(whole, 20, by, 43)[1].paths


@pytest.mark.parametrize(
    ("counts", "by", "other"),
    [
        ([5, 5, 5], "classes", "validation_by=images"),  # one would be left to train on
        ([1, 1, 1, 1, 9], "classes", "validation_by=images"),  # a class that can be measured
        ([3, 3, 3, 3, 9], "images", "validation=queries"),
    ],
)
def test_too_few_classes_or_images_to_hold_out_is_an_error_that_says_what_to_do(counts, by, other):
    with pytest.raises(DatasetError) as caught:
        hold_out(images(counts), 20, by, 0)
    assert caught.value.code == "validation-impossible" and other in caught.value.fix


@pytest.mark.parametrize(("recall", "delivered"), [(0.5, "start"), (0.6, "adapted")])
def test_an_adapted_start_is_delivered_where_it_is_better(tmp_path, recall, delivered):
    scores = iter([0.5, recall, 0.1])
    own = trainer(tmp_path, lambda network: metrics(next(scores)), epochs=1, eval_start=True, start_counts=True)
    own.prepare = lambda: own.measure_adapted() and None
    own.fit()
    found = delivery(own.state.progress)
    assert (found["delivered"], found["delivered_epoch"]) == (delivered, 0)
    assert found["adapted"] == (metrics(recall) if delivered == "adapted" else None)
