"""Classifiers against NumPy, their starts at class means, and their keys."""

from __future__ import annotations

import math

import numpy as np
import pytest
from support.runs import ROOT

paddle = pytest.importorskip("paddle")

from paddlex_feat.config.load import load, split_override
from paddlex_feat.config.parts import HasClassVectors
from paddlex_feat.errors import ConfigError
from paddlex_feat.losses import LOSSES
from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
from paddlex_feat.models import HEADS, recognizer
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.modes.parts import find_problems

CLASSES, SIZE = 5, 8
FORMS = {
    "cosine": {"temperature": 0.1},
    "cosface": {"margin": 0.3, "scale": 20.0},
    "subcenter_arcface": {"margin": 0.6, "scale": 20.0, "sub_centers": 3},
}
HEADS_WITH_VECTORS = ("linear", "arc_margin", *FORMS)


def head(name: str, **keys):
    paddle.seed(2)
    spec = NetworkSpec(head=name, head_params=keys, embedding_size=SIZE)
    built = recognizer.build(spec, CLASSES).head
    built.train()
    return built


def unit(x: np.ndarray, axis: int) -> np.ndarray:
    return x / np.linalg.norm(x, axis=axis, keepdims=True)


def class_cosines(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """The greatest of each class's centres, which lie side by side."""
    return (unit(x, 1) @ unit(weight, 0)).reshape(len(x), CLASSES, -1).max(axis=2)


def logits(name: str, x: np.ndarray, y: np.ndarray, weight: np.ndarray) -> np.ndarray:
    cos, own, keys = class_cosines(x, weight), (np.arange(len(y)), y), FORMS[name]
    if name == "cosine":
        return cos / keys["temperature"]
    if name == "cosface":
        cos[own] -= keys["margin"]
    else:
        angle, margin = np.arccos(cos[own]), keys["margin"]
        shifted = np.cos(angle + margin)
        cos[own] = np.where(angle + margin <= np.pi, shifted, cos[own] - margin * np.sin(margin))
    return cos * keys["scale"]


@pytest.mark.parametrize("name", FORMS)
def test_logits_and_slopes_in_numpy(name):
    rng = np.random.default_rng(0)
    layer = head(name, **FORMS[name])
    x, y, weight = rng.standard_normal((6, SIZE)) * 4, np.array([0, 1, 2, 3, 4, 4]), layer.weight.numpy().astype(float)
    nearest = layer.weight.numpy()[:, 0]
    x[0] = -nearest * 5 + 0.1 * x[0] if name != "subcenter_arcface" else x[0]
    features, labels = paddle.to_tensor(x, "float32", stop_gradient=False), paddle.to_tensor(y)
    found = layer(features, labels)
    assert np.allclose(found.numpy(), logits(name, x, y, weight), atol=2e-5)

    def loss(x: np.ndarray, weight: np.ndarray) -> float:
        z = logits(name, x, y, weight)
        return float((np.log(np.exp(z).sum(axis=1)) - z[np.arange(len(y)), y]).mean())

    LabelSmoothingCrossEntropy(0.0)(found, labels).backward()
    step = np.zeros_like(x)
    step[1, 2] = 1e-6
    slope = (loss(x + step, weight) - loss(x - step, weight)) / 2e-6
    assert float(features.grad[1, 2]) == pytest.approx(slope, abs=1e-5)
    step = np.zeros_like(weight)
    step[3, 1] = 1e-6
    slope = (loss(x, weight + step) - loss(x, weight - step)) / 2e-6
    assert float(layer.weight.grad[3, 1]) == pytest.approx(slope, abs=1e-5)


def test_a_centre_that_is_past_pi_with_its_margin_keeps_falling():
    layer = head("subcenter_arcface", margin=0.6, scale=20.0, sub_centers=1)
    weight = layer.weight.numpy().astype(float)
    x = (-weight[:, 1] + 0.05 * weight[:, 0])[None] * 3
    found = layer(paddle.to_tensor(x, "float32"), paddle.to_tensor([1])).numpy()
    own = class_cosines(x, weight)[0, 1]
    assert own < -math.cos(0.6)
    assert found[0, 1] == pytest.approx(20 * (own - 0.6 * math.sin(0.6)), abs=1e-4)


@pytest.mark.parametrize("name", FORMS)
def test_in_evaluation_or_without_labels_they_are_cosines(name):
    layer = head(name, **FORMS[name])
    x = np.random.default_rng(1).standard_normal((3, SIZE)).astype("float32")
    features, labels = paddle.to_tensor(x), paddle.to_tensor([0, 1, 2])
    expected = class_cosines(x, layer.weight.numpy())
    assert np.allclose(layer(features).numpy(), expected, atol=1e-6)
    layer.eval()
    assert np.allclose(layer(features, labels).numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("name", FORMS)
def test_a_feature_on_its_class_vector_or_of_length_0_has_a_finite_gradient(name):
    layer = head(name, **FORMS[name])
    x = np.stack([layer.weight.numpy()[:, 0] * 7, -layer.weight.numpy()[:, 0], np.zeros(SIZE)]).astype("float32")
    features, labels = paddle.to_tensor(x, stop_gradient=False), paddle.to_tensor([0, 0, 1])
    LabelSmoothingCrossEntropy(0.0)(layer(features, labels), labels).backward()
    assert np.isfinite(features.grad.numpy()).all() and np.isfinite(layer.weight.grad.numpy()).all()


@pytest.mark.parametrize("name", HEADS_WITH_VECTORS)
def test_they_start_at_class_means(name):
    rng = np.random.default_rng(4)
    means = unit(rng.standard_normal((CLASSES, SIZE)), 1).astype("float32")
    means[3] = 0  # a class without images
    layer = head(name)
    assert isinstance(layer, HasClassVectors)
    weight = layer.fc.weight if name == "linear" else layer.weight
    before = weight.numpy()
    layer.set_class_means(means)
    after = weight.numpy()
    of_class = np.repeat(np.arange(CLASSES), after.shape[1] // CLASSES)
    assert np.array_equal(after[:, of_class == 3], before[:, of_class == 3])
    known = of_class != 3
    cos = (unit(after, 0)[:, known] * means[of_class[known]].T).sum(axis=0)
    if name == "subcenter_arcface":
        assert cos.min() > 0.99 and len(np.unique(after, axis=1).T) == len(of_class)  # near, and all different
        layer.set_class_means(means)
        assert not np.array_equal(weight.numpy(), after)
        paddle.seed(9)
        layer.set_class_means(means)
        first = weight.numpy()
        paddle.seed(9)
        layer.set_class_means(means)
        assert np.array_equal(weight.numpy(), first)  # the noise is Paddle's
    else:
        assert np.allclose(cos, 1, atol=1e-6)
    layer.eval()
    features = means[[0, 1, 2, 4]] * math.sqrt(SIZE)
    found = layer(paddle.to_tensor(features)).numpy()
    assert found.argmax(axis=1).tolist() == [0, 1, 2, 4]
    if name == "linear":
        assert found.max(axis=1) == pytest.approx(np.full(4, 16.0), rel=1e-5)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Model.head=cosine", "Model.head_params={temprature: 0.1}"], "Did you mean temperature?"),
        (["Model.head=cosface", "Model.head_params={scale: 0}"], "Model.head_params.scale"),
        (["Model.head=subcenter_arcface", "Model.head_params={sub_centers: 0}"], "Model.head_params.sub_centers"),
        (["Model.head=subcentre_arcface"], "Did you mean subcenter_arcface?"),
        (["Train.loss.terms=[{name: supcon, temperature: 0}]"], "Train.loss.terms.0.temperature"),
        (["Train.loss.terms=[{name: triplet_batch_hard, distance: l2}]"], "'cosine' or 'euclidean'"),
    ],
)
def test_their_keys_are_checked(words, message):
    settings = [split_override(word) for word in ("Global.mode=train", *words)]
    with pytest.raises(ConfigError) as caught:
        load("PP-ShiTuV2_rec", settings, check=find_problems)
    assert message in str(caught.value)


@pytest.mark.parametrize("registry", [LOSSES, HEADS], ids=lambda r: r.kind)
def test_the_guide_has_each_with_its_keys_and_defaults(registry):
    guide = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    for spec in registry.added():
        (row,) = (line for line in guide.splitlines() if line.startswith(f"| `{spec.name}` |"))
        for name, field in spec.params.model_fields.items():
            assert f"`{name}: {field.default}`" in row, (spec.name, name)
