"""Memory of past batches: losses over references against NumPy, what is remembered, saved and refused."""

from __future__ import annotations

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from support.networks import TINY_CLIP

from paddlex_feat.config.schema import Config
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import WeightsError
from paddlex_feat.losses import LOSSES, LossContext, LossSpec, find_terms, memory_problem, read_terms
from paddlex_feat.losses.combined import CombinedLoss
from paddlex_feat.losses.memory import FeatureMemory, References
from paddlex_feat.models import recognizer, weights
from paddlex_feat.modes.parts import find_problems
from paddlex_feat.training import checkpoint
from paddlex_feat.training.checkpoint import Progress, TrainingState
from paddlex_feat.training.step import Step, TrainingNetwork

SIZE = 6
TAKE = ["circle", "multi_similarity", "supcon", "triplet_angular_margin", "triplet_batch_hard"]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def anchor_loss(name: str, pos: np.ndarray, neg: np.ndarray) -> float:
    """Loss of an anchor with its cosines to positives and negatives, by the defaults of each loss."""
    if name == "triplet_angular_margin":
        p, n = min([*pos, 1.0]), max([*neg, -4.0])
        return max(0, n - p + 0.5) + 0.1 * (max(0, 0.8 - p) + max(0, n - 0.4))
    if name == "multi_similarity":
        pos, neg = pos[pos - 0.1 < neg.max(initial=-9)], neg[neg + 0.1 > pos.min(initial=9)]
        return np.log1p(np.exp(-2 * (pos - 0.5)).sum()) / 2 + np.log1p(np.exp(50 * (neg - 0.5)).sum()) / 50
    if not len(pos) or not len(neg):
        return 0.0
    if name == "supcon":
        return np.log(np.exp(np.concatenate([pos, neg]) / 0.1).sum()) - (pos / 0.1).mean()
    if name == "circle":
        pull = np.exp(-80 * np.maximum(0, 1.4 - pos) * (pos - 0.6)).sum()
        return np.log1p(pull * np.exp(80 * np.maximum(0, neg + 0.4) * (neg - 0.4)).sum())
    return max(0.0, neg.max() - pos.min() + 0.2)


def plain(name: str, x: np.ndarray, y: np.ndarray, all_x: np.ndarray, all_y: np.ndarray) -> float:
    """The loss of the anchors x among all images, of which they are the first."""
    losses = []
    for i, cos in enumerate(unit(x.astype(float)) @ unit(all_x.astype(float)).T):
        others = np.arange(len(all_y)) != i
        losses.append(anchor_loss(name, cos[(all_y == y[i]) & others], cos[all_y != y[i]]))
    above = name not in ("multi_similarity", "triplet_angular_margin")
    return float(np.mean([v for v in losses if v > 0] or [0.0]) if above else np.mean(losses))


def loss_of(*names: str) -> CombinedLoss:
    return CombinedLoss(read_terms([{"name": name} for name in names]), LossContext(5, SIZE))


@pytest.mark.parametrize("anchors", [[0, 0, 1, 1], [0, 1, 2, 3], [4, 4, 4]])
@pytest.mark.parametrize("name", TAKE)
def test_losses_over_references_are_the_formulas_over_all_images(name, anchors):
    """Batches without positives or negatives of their own find them among the references."""
    rng, y, more = np.random.default_rng(2), np.array(anchors), np.array([0, 1, 1, 2, 4, 3, 2])
    centres = rng.standard_normal((5, SIZE))
    x, past = (centres[labels] + 1.5 * rng.standard_normal((len(labels), SIZE)) for labels in (y, more))
    tensor = paddle.to_tensor(x.astype("float32"), stop_gradient=False)
    references = References(paddle.to_tensor(unit(past).astype("float32")), paddle.to_tensor(more))
    layer, labels = loss_of(name).losses[name], paddle.to_tensor(y)
    value = layer(tensor, labels, references)
    value.backward()
    expected = plain(name, x, y, np.concatenate([x, past]), np.concatenate([y, more]))
    assert float(value) == pytest.approx(expected, rel=1e-5, abs=1e-5) and expected > 0
    assert np.isfinite(tensor.grad.numpy()).all() and tensor.grad.abs().sum() > 0
    assert float(value) != float(layer(tensor, labels))


def test_the_memory_keeps_the_newest_images_at_length_1():
    memory, rng = FeatureMemory(5, SIZE), np.random.default_rng(0)
    assert memory.references is None
    batches = [rng.standard_normal((n, SIZE)).astype("float32") * 9 for n in (2, 2, 2, 7)]
    for number, batch in enumerate(batches[:3]):
        memory.add(paddle.to_tensor(batch, stop_gradient=False) * 1.0, paddle.full([2], number, "int64"))
    assert memory.references.labels.tolist() == [2, 2, 1, 1, 0] and memory.references.unit.stop_gradient
    expected = unit(np.concatenate([batches[2], batches[1], batches[0][:1]]))
    assert np.allclose(memory.references.unit.numpy(), expected, atol=1e-6)
    memory.add(paddle.to_tensor(batches[3]), paddle.arange(7))
    assert memory.references.labels.tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("group", [1, 2], ids=["a batch a step", "two batches a step"])
def test_a_step_compares_with_the_batches_before_it(group):
    """Four batches, of which two are remembered, at learning rate 0: each loss is that of NumPy."""
    paddle.seed(0)
    model = recognizer.build(TINY_CLIP, 5)
    terms = read_terms([{"name": name} for name in ("supcon", "multi_similarity", "cross_entropy")])
    criterion = CombinedLoss(terms, LossContext(5, TINY_CLIP.embedding_size))
    network, optimizer = TrainingNetwork(model, Preprocess(32)), paddle.optimizer.SGD(0.0, model.parameters())
    step = Step(network, criterion, optimizer, memory=FeatureMemory(2 * 6, TINY_CLIP.embedding_size))
    rng = np.random.default_rng(0)
    labels = [rng.integers(0, 5, 6) for _ in range(4)]
    images = [rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8) for _ in range(4)]
    features = [network(paddle.to_tensor(i), paddle.to_tensor(labels[0]))[0].numpy() for i in images]
    found, expected = [], []
    for first in range(0, 4, group):
        terms = step([(images[i], labels[i]) for i in range(first, first + group)])
        found.append([float(terms["SupConLoss"]), float(terms["MultiSimilarityLoss"])])
    for i in range(4):
        seen = range(i, max(i - 3, -1), -1)
        all_x, all_y = (np.concatenate([rows[j] for j in seen]) for rows in (features, labels))
        expected.append([plain(n, features[i], labels[i], all_x, all_y) for n in ("supcon", "multi_similarity")])
    assert np.allclose(found, np.reshape(expected, (-1, group, 2)).mean(axis=1), rtol=1e-5, atol=1e-5)


def state_of(images: int = 8) -> TrainingState:
    layer = paddle.nn.Linear(2, 2)
    memory = FeatureMemory(images, SIZE) if images else None
    return TrainingState(layer, paddle.optimizer.SGD(0.1, layer.parameters()), Progress(), memory=memory)


def test_it_is_saved_and_comes_back_to_the_byte(tmp_path):
    state, rng = state_of(), np.random.default_rng(1)
    checkpoint.snapshot(state).write(tmp_path, "empty")
    assert not (tmp_path / "empty.pdmemory").exists()
    state.memory.add(paddle.to_tensor(rng.standard_normal((6, SIZE)), "float32"), paddle.arange(6))
    state.neighbours = np.array([[1], [0]])
    checkpoint.snapshot(state).write(tmp_path, "x")
    again = state_of()
    checkpoint.resume(tmp_path / "x.pdparams", again)
    checkpoint.snapshot(again).write(tmp_path, "y")
    assert (tmp_path / "x.pdmemory").read_bytes() == (tmp_path / "y.pdmemory").read_bytes()
    shorter, without = state_of(4), state_of(0)
    for other in (shorter, without):
        checkpoint.resume(tmp_path / "x.pdparams", other)
    assert shorter.memory.references.labels.tolist() == [0, 1, 2, 3] and without.memory is None
    fresh = state_of()
    checkpoint.resume(tmp_path / "empty.pdparams", fresh)
    assert fresh.memory.references is None and fresh.neighbours is None


@pytest.mark.parametrize(
    ("entries", "code"),
    [
        ({"memory_features": np.ones((2, SIZE), np.float32)}, "memory-form"),
        ({"memory_features": np.ones((2, SIZE), np.float32), "memory_labels": np.arange(3)}, "memory-form"),
        ({"memory_features": np.ones((2, 4), np.float32), "memory_labels": np.arange(2)}, "memory-form"),
        ({"memory_features": np.full((2, SIZE), np.nan, np.float32), "memory_labels": np.arange(2)}, "memory-form"),
        ({"memory_features": "text", "memory_labels": np.arange(2)}, "memory-form"),
        ({"neighbours": np.array([[2], [0]])}, "neighbours-form"),
        ({"neighbours": np.array([1.0, 0.0])}, "neighbours-form"),
    ],
)
def test_damaged_files_are_refused(entries, code, tmp_path):
    checkpoint.snapshot(state_of()).write(tmp_path, "x")
    weights.write(tmp_path / "x.pdmemory", entries)
    with pytest.raises(WeightsError) as caught:
        checkpoint.resume(tmp_path / "x.pdparams", state_of())
    assert caught.value.code == code


def problems_of(**loss) -> list[str]:
    config = Config.model_validate({"Global": {"mode": "train"}, "Train": {"memory_batches": 2, "loss": loss}})
    return [f"{p.key}: {p.message}" for p in find_problems(config)]


def test_a_loss_that_cannot_use_it_is_an_error_that_names_those_that_can():
    assert sorted(spec.name for spec in LOSSES.added() if spec.takes_references) == TAKE
    assert not problems_of()
    assert not problems_of(terms=[{"name": "cross_entropy"}, {"name": "supcon"}])
    (found,) = problems_of(terms=[{"name": "cross_entropy"}, {"name": "supcon", "weight": 0}])
    assert found.startswith("Train.memory_batches: no loss compares images") and ", ".join(TAKE) in found
    terms, _ = find_terms([{"name": "supcon"}])
    other = LossSpec("other", "OtherLoss", "features", "a:b", mines_pairs=True)
    text = memory_problem([*terms, type(terms[0])(other, 1.0, 1.0, terms[0].params)])
    assert text is not None and text.startswith("other cannot compare") and "supcon" in text
