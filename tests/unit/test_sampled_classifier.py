"""The classifier that draws classes against the heads in the network, whose arithmetic is Paddle's."""

from __future__ import annotations

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

import paddle.nn.functional as F

from paddlex_feat.errors import TrainingError
from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
from paddlex_feat.models import class_scores, heads
from paddlex_feat.models.head_params import CosFaceParams, CosineParams, SubCenterArcFaceParams
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.classifier.class_rows import ClassRows
from paddlex_feat.training.classifier.gpu_rows import GpuClassifier, GpuRows
from paddlex_feat.training.classifier.part import Part
from paddlex_feat.training.classifier.row_rules import AdamWRows, MomentumRows
from paddlex_feat.training.classifier.sampled import SampledClassifier

CLASSES, DIM, BATCH = 700, 24, 9
SPEC = NetworkSpec(embedding_size=DIM, arc_margin=0.3, arc_scale=20.0)
KINDS = {
    "linear": None,
    "arc_margin": None,
    "cosine": CosineParams(),
    "cosface": CosFaceParams(scale=20.0),
    "subcenter_arcface": SubCenterArcFaceParams(scale=20.0, sub_centers=3),
}
MOMENTUM = MomentumRows(momentum=0.9, decay=1e-3)


def dense(kind: str) -> paddle.nn.Layer:
    paddle.seed(3)
    return getattr(heads, kind)(SPEC, CLASSES, KINDS[kind])


def sampled(kind: str, head: paddle.nn.Layer, rate: float = 1.0, rule=MOMENTUM) -> SampledClassifier:
    rows = ClassRows(head.class_vectors().copy(), getattr(class_scores, kind)(SPEC, KINDS[kind]), rule, threads=2)
    return SampledClassifier(rows, Part(CLASSES, ProcessGroup()), rate, seed=1)


def batch(number: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(number)
    features = random.standard_normal((BATCH, DIM), np.float32) * 3
    labels = random.integers(0, CLASSES, BATCH)
    labels[1] = labels[0]
    return features, labels


def vectors(head: paddle.nn.Layer) -> np.ndarray:
    return head.class_vectors().reshape(-1, DIM)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_all_classes_drawn_give_loss_gradients_and_steps_of_the_dense_head(kind, smoothing):
    head, criterion = dense(kind), LabelSmoothingCrossEntropy(smoothing)
    ours = sampled(kind, head)
    optimizer = paddle.optimizer.Momentum(0.05, 0.9, head.parameters(), weight_decay=1e-3)
    for number in range(20):
        x, labels = batch(number)
        theirs_x, ours_x = (paddle.to_tensor(x, stop_gradient=False) for _ in range(2))
        target = paddle.to_tensor(labels)
        expected = criterion(head(theirs_x, target), target)
        expected.backward()
        optimizer.step()
        optimizer.clear_grad()
        ours.draw([labels])
        loss = ours.loss(ours_x, target, smoothing)
        loss.backward()
        ours.update(0.05)
        assert abs(float(loss) - float(expected)) <= 1e-5 * max(1, float(expected))
        np.testing.assert_allclose(ours_x.grad.numpy(), theirs_x.grad.numpy(), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ours.rows.weights, vectors(head), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "arc_margin"])
def test_accumulated_batches_and_adamw_are_those_of_the_dense_head(kind):
    head, criterion = dense(kind), LabelSmoothingCrossEntropy(0.1)
    ours = sampled(kind, head, rule=AdamWRows(0.9, 0.999, 1e-8, decoupled=0.05))
    optimizer = paddle.optimizer.AdamW(0.01, parameters=head.parameters(), weight_decay=0.05)
    for number in range(0, 20, 2):
        parts = [batch(number), batch(number + 1)]
        ours.draw([labels for _, labels in parts])
        for x, labels in parts:
            target = paddle.to_tensor(labels)
            (criterion(head(paddle.to_tensor(x), target), target) * 0.5).backward()
            (ours.loss(paddle.to_tensor(x, stop_gradient=False), target, 0.1) * 0.5).backward()
        optimizer.step()
        optimizer.clear_grad()
        ours.update(0.01)
    np.testing.assert_allclose(ours.rows.weights, vectors(head), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_share_of_the_classes_gives_the_softmax_over_these_alone(kind):
    """Against the dense head with the vectors that were drawn; all others stay as they are, momentum too."""
    head = dense(kind)
    ours, (x, labels) = sampled(kind, head, rate=0.1), batch()
    before, target = ours.rows.weights.copy(), paddle.to_tensor(labels)
    ours.draw([labels])
    drawn = ours._drawn
    assert len(drawn) == 70 and set(labels) <= set(drawn.tolist())
    ours_x, theirs_x = (paddle.to_tensor(x, stop_gradient=False) for _ in range(2))
    loss = ours.loss(ours_x, target, 0.1)
    loss.backward()
    ours.update(0.05)
    small = getattr(heads, kind)(SPEC, len(drawn), KINDS[kind])
    centers = len(before) // CLASSES
    taken = before.reshape(CLASSES, centers, DIM)[drawn].reshape(-1, DIM)
    small.parameters()[0].set_value(taken.T.copy())
    places = paddle.to_tensor(np.searchsorted(drawn, labels))
    expected = LabelSmoothingCrossEntropy(0.1)(small(theirs_x, places), places)
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-5)
    np.testing.assert_allclose(ours_x.grad.numpy(), theirs_x.grad.numpy(), rtol=1e-5, atol=1e-5)
    others = np.setdiff1d(np.arange(CLASSES), drawn)
    for array, start in ((ours.rows.weights, before), (ours.rows.states["velocity"], np.zeros_like(before))):
        by_class, was = array.reshape(CLASSES, -1), start.reshape(CLASSES, -1)
        assert np.array_equal(by_class[others], was[others])
        assert (by_class[drawn] != was[drawn]).any(axis=1).all()


def test_draws_repeat_and_change_with_the_step():
    ours, again = (sampled("cosine", dense("cosine"), rate=0.05) for _ in range(2))
    drawn = []
    for classifier in (ours, again):
        for _ in range(3):
            classifier.draw([np.array([5, 600])])
            drawn.append(classifier._drawn)
            classifier.steps += 1
    assert all(np.array_equal(a, b) for a, b in zip(drawn[:3], drawn[3:], strict=True))
    assert not np.array_equal(drawn[0], drawn[1]) and all(len(d) == 35 for d in drawn)


def test_the_number_of_threads_changes_no_bit():
    results = []
    for threads in (1, 3):
        head, (x, labels) = dense("arc_margin"), batch()
        ours = sampled("arc_margin", head)
        ours.rows._threads = threads
        ours.draw([labels])
        features = paddle.to_tensor(x, stop_gradient=False)
        ours.loss(features, paddle.to_tensor(labels), 0.1).backward()
        ours.update(0.05)
        results.append((features.grad.numpy(), ours.rows.weights))
    assert all(np.array_equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize("label", [-1, CLASSES])
def test_a_label_that_is_no_class_is_refused_before_the_step(label):
    ours = sampled("linear", dense("linear"))
    with pytest.raises(TrainingError, match=f"holds the class {label}, the classifier has {CLASSES}"):
        ours.draw([np.array([0, label])])


def test_features_and_vectors_without_a_direction_have_no_gradient():
    head = dense("arc_margin")
    ours, (x, labels) = sampled("arc_margin", head), batch()
    x[0] = 0
    ours.rows.weights[int(labels[2])] = 0
    ours.draw([labels])
    features = paddle.to_tensor(x, stop_gradient=False)
    ours.loss(features, paddle.to_tensor(labels), 0.1).backward()
    ours.update(0.05)
    assert not features.grad.numpy()[0].any() and np.isfinite(features.grad.numpy()).all()
    assert not ours.rows.weights[int(labels[2])].any() and np.isfinite(ours.rows.weights).all()


def by_formula(logits, label, margin1, margin2, margin3, scale, group, reduction):
    """margin_cross_entropy as Paddle's documentation defines it; its CPU build has none."""
    assert margin1 == 1.0 and group is False and reduction == "mean"
    own = F.one_hot(label, logits.shape[1])
    turned = paddle.cos(paddle.acos(logits) + margin2) if margin2 else logits
    return F.cross_entropy(scale * (logits * (1 - own) + (turned - margin3) * own), label, reduction="mean")


@pytest.mark.parametrize("rule", [MOMENTUM, AdamWRows(0.9, 0.999, 1e-8, decoupled=0.05)], ids=["momentum", "adamw"])
@pytest.mark.parametrize("kind", KINDS)
def test_paddles_operators_on_a_gpu_take_the_steps_of_our_arithmetic(kind, rule, monkeypatch):
    monkeypatch.setattr(F, "margin_cross_entropy", by_formula)
    head = dense(kind)
    ours = sampled(kind, head, rule=rule)
    rows = GpuRows(head.class_vectors(), getattr(class_scores, kind)(SPEC, KINDS[kind]), rule)
    theirs = GpuClassifier(rows, Part(CLASSES, ProcessGroup()), 1.0, seed=1)
    for number in range(0, 10, 2):
        parts = [batch(number), batch(number + 1)]
        gradients = []
        for classifier in (ours, theirs):
            classifier.draw([labels for _, labels in parts])
            leaves = [paddle.to_tensor(x, stop_gradient=False) for x, _ in parts]
            for leaf, (_, labels) in zip(leaves, parts, strict=True):
                (classifier.loss(leaf, paddle.to_tensor(labels), 0.0) * 0.5).backward()
            classifier.update(0.01)
            gradients.append([leaf.grad.numpy() for leaf in leaves])
        np.testing.assert_allclose(gradients[1], gradients[0], rtol=1e-3, atol=2e-5)
    np.testing.assert_allclose(rows.chunk("weight", 0, 10**6), ours.rows.weights, rtol=1e-3, atol=1e-4)


def test_a_gpu_draws_the_share_that_is_asked_for(monkeypatch):
    monkeypatch.setattr(F, "margin_cross_entropy", by_formula)
    head, (x, labels) = dense("cosine"), batch()
    rows = GpuRows(head.class_vectors(), class_scores.cosine(SPEC, CosineParams()), MOMENTUM)
    classifier = GpuClassifier(rows, Part(CLASSES, ProcessGroup()), 0.1, seed=1)
    classifier.draw([labels])
    classifier.loss(paddle.to_tensor(x, stop_gradient=False), paddle.to_tensor(labels), 0.0).backward()
    classifier.update(0.1)
    changed = (rows.chunk("weight", 0, CLASSES) != vectors(head)).any(axis=1)
    assert changed.sum() == 70 and changed[labels].all()
    with pytest.raises(TrainingError, match="holds the class 700"):
        classifier.draw([np.array([CLASSES])])
