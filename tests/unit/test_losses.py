"""Losses against a second route: NumPy in float64, and differences for the gradient."""

from __future__ import annotations

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
from paddlex_feat.losses.triplet_angular_margin import TripletAngularMarginLoss
from paddlex_feat.training.schedule import warmup_cosine


def tam_float64(features, labels, margin=0.5, weight=0.1, positive=0.8, negative=0.4):
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rank, absolute = [], []
    for i in range(len(labels)):
        similar = unit @ unit[i]
        p = min(similar[j] for j in range(len(labels)) if labels[j] == labels[i])
        others = [similar[j] for j in range(len(labels)) if labels[j] != labels[i]]
        n = max(others) if others else -np.inf
        rank.append(max(0.0, n - p + margin))
        absolute.append(max(0.0, positive - p) + max(0.0, n - negative))
    return np.mean(rank) + weight * np.mean(absolute)


CASES = {
    "p x k": np.repeat(np.arange(4), 4),
    "unequal classes": np.array([0, 0, 0, 1, 2, 2, 2, 2, 2, 3]),
    "one class": np.zeros(6, int),
    "all different": np.arange(6),
}


@pytest.mark.parametrize("name", CASES)
def test_triplet_loss_equals_float64(name):
    labels = CASES[name]
    features = np.random.default_rng(0).standard_normal((len(labels), 16))
    got = float(TripletAngularMarginLoss()(paddle.to_tensor(features, "float32"), paddle.to_tensor(labels)))
    assert got == pytest.approx(tam_float64(features, labels), abs=1e-5)


def test_satisfied_bounds_cost_nothing():
    """Orthogonal classes of identical samples meet every bound; the older form reported 0.1."""
    features = paddle.to_tensor(np.repeat(np.eye(4), 2, axis=0).astype("float32"))
    loss = TripletAngularMarginLoss()(features, paddle.to_tensor(np.repeat(np.arange(4), 2)))
    assert float(loss) == 0.0


def test_triplet_gradient_equals_differences():
    labels = CASES["p x k"]
    x = np.random.default_rng(1).standard_normal((16, 5))
    tensor = paddle.to_tensor(x, "float64", stop_gradient=False)
    TripletAngularMarginLoss()(tensor, paddle.to_tensor(labels)).backward()
    for i, j in ((0, 0), (5, 2), (15, 4)):
        step = np.zeros_like(x)
        step[i, j] = 1e-6
        slope = (tam_float64(x + step, labels) - tam_float64(x - step, labels)) / 2e-6
        assert float(tensor.grad[i, j]) == pytest.approx(slope, abs=1e-6)


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.5])
def test_smoothed_cross_entropy_equals_float64(epsilon):
    rng = np.random.default_rng(2)
    logits, labels = rng.standard_normal((7, 11)) * 3, rng.integers(0, 11, 7)
    log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    target = (1 - epsilon) * np.eye(11)[labels] + epsilon / 11
    expected = -(target * log_p).sum(axis=1).mean()
    loss = LabelSmoothingCrossEntropy(epsilon)(paddle.to_tensor(logits, "float32"), paddle.to_tensor(labels))
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("size", [1.0, 1e4])
def test_smoothed_cross_entropy_has_the_softmax_as_gradient(size):
    rng = np.random.default_rng(4)
    logits, labels = (rng.standard_normal((5, 9)) * size).astype("float32"), rng.integers(0, 9, 5)
    tensor = paddle.to_tensor(logits, stop_gradient=False)
    LabelSmoothingCrossEntropy(0.1)(tensor, paddle.to_tensor(labels)).backward()
    p = np.exp(logits.astype(float) - logits.max(axis=1, keepdims=True))
    expected = (p / p.sum(axis=1, keepdims=True) - 0.9 * np.eye(9)[labels] - 0.1 / 9) / 5
    assert np.allclose(tensor.grad.numpy(), expected, atol=1e-6)


def test_the_total_is_the_weighted_sum_and_weight_0_is_not_computed():
    rng = np.random.default_rng(3)
    features, logits = (paddle.to_tensor(rng.standard_normal((8, 6)), "float32") for _ in range(2))
    labels = paddle.to_tensor(np.arange(8) % 2)
    terms = recipe_loss(0.1, 2.0, 3.0)(features, logits, labels)
    expected = 2 * float(terms["CELoss"]) + 3 * float(terms["TripletAngularMarginLoss"])
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-6)
    only = recipe_loss(0.1, 1.0, 0.0)(features, logits, labels)
    assert set(only) == {"CELoss", "loss"}


def test_schedule_by_hand():
    """10 epochs of 4 steps, 2 of them warm-up, peak 0.8."""
    rates = [warmup_cosine(0.8, t, 4, 10, 2) for t in range(41)]
    assert rates[:9] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])
    assert rates[8 + 16] == pytest.approx(0.4)  # half way down the cosine
    assert rates[40] == pytest.approx(0, abs=1e-12) and rates[39] > 0


def test_warm_up_longer_than_the_run():
    assert warmup_cosine(1.0, 3, 4, 1, 5) == pytest.approx(0.75)
    assert warmup_cosine(1.0, 0, 4, 1, 0) == pytest.approx(1.0)
