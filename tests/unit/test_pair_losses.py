"""Losses on pairs and proxies against loops in NumPy, at their edges, and in half precision."""

from __future__ import annotations

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from paddlex_feat.config.parts import HasClassVectors
from paddlex_feat.losses import LOSSES, LossContext, read_terms, rows
from paddlex_feat.losses.combined import CombinedLoss

CLASSES, SIZE = 5, 6
BATCHES = {
    "p x k": [0, 0, 0, 1, 1, 1, 2, 2, 2],
    "unequal": [3, 0, 0, 1, 4, 4, 4, 4],
    "one class": [2, 2, 2],
    "all different": [0, 1, 2, 3],
    "one image": [4],
}
NOTHING_TO_COMPARE = ("one class", "all different", "one image")
PAIRS = ("supcon", "multi_similarity", "circle", "triplet_batch_hard")


def build(name: str, **keys):
    paddle.seed(1)
    return CombinedLoss(read_terms([{"name": name, **keys}]), LossContext(CLASSES, SIZE)).losses[name]


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def anchors(x: np.ndarray, y: np.ndarray):
    """Cosines to positives and to negatives of each anchor."""
    cos = unit(x) @ unit(x).T
    for i in range(len(y)):
        others = np.arange(len(y)) != i
        yield cos[i][(y == y[i]) & others], cos[i][y != y[i]]


def mean_above_zero(losses: list[float]) -> float:
    return float(np.mean([v for v in losses if v > 0] or [0.0]))


def supcon(x, y, temperature):
    losses = []
    for pos, neg in anchors(x, y):
        total = np.exp(np.concatenate([pos, neg]) / temperature).sum()
        losses.append(-np.log(np.exp(pos / temperature) / total).mean() if len(pos) and len(neg) else 0.0)
    return mean_above_zero(losses)


def multi_similarity(x, y, alpha, beta, base, epsilon):
    losses = []
    for pos, neg in anchors(x, y):
        if epsilon is not None:
            pos, neg = (
                pos[pos - epsilon < neg.max(initial=-9)],
                neg[neg + epsilon > pos.min(initial=9)],
            )
        pull, push = np.exp(-alpha * (pos - base)).sum(), np.exp(beta * (neg - base)).sum()
        losses.append(np.log1p(pull) / alpha + np.log1p(push) / beta)
    return np.mean(losses)


def circle(x, y, m, gamma):
    losses = []
    for pos, neg in anchors(x, y):
        pull = np.exp(-gamma * np.maximum(0, 1 + m - pos) * (pos - 1 + m)).sum()
        push = np.exp(gamma * np.maximum(0, neg + m) * (neg - m)).sum()
        losses.append(np.log1p(pull * push))
    return mean_above_zero(losses)


def triplet_batch_hard(x, y, margin, distance):
    losses = []
    for pos, neg in anchors(x, y):
        if not len(pos) or not len(neg):
            continue
        p, n = 1 - pos.min(), 1 - neg.max()
        if distance == "euclidean":
            p, n = np.sqrt(2 * p), np.sqrt(2 * n)
        losses.append(np.log1p(np.exp(p - n)) if margin is None else max(0.0, p - n + margin))
    return mean_above_zero(losses)


FORMS = [
    (supcon, {"temperature": 0.3}),
    (multi_similarity, {"alpha": 2.0, "beta": 10.0, "base": 0.4, "epsilon": 0.2}),
    (multi_similarity, {"alpha": 2.0, "beta": 10.0, "base": 0.4, "epsilon": None}),
    (circle, {"m": 0.3, "gamma": 8.0}),
    (triplet_batch_hard, {"margin": 0.3, "distance": "cosine"}),
    (triplet_batch_hard, {"margin": None, "distance": "euclidean"}),
]


def numbers(batch: str) -> tuple[np.ndarray, np.ndarray]:
    labels = np.array(BATCHES[batch])
    rng = np.random.default_rng(7)
    return (rng.standard_normal((CLASSES, SIZE))[labels] + rng.standard_normal((len(labels), SIZE))) * 3, labels


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize(("formula", "keys"), FORMS, ids=lambda v: getattr(v, "__name__", ""))
def test_the_formula_in_numpy_and_its_slope(formula, keys, batch):
    x, y = numbers(batch)
    tensor = paddle.to_tensor(x, "float64", stop_gradient=False)
    value = build(formula.__name__, **keys)(tensor, paddle.to_tensor(y))
    value.backward()
    assert float(value) == pytest.approx(formula(x, y, **keys), abs=1e-9)
    if formula is circle:  # its weights have no gradient: the slope of the formula is another
        return
    for i, j in ((0, 0), (len(y) - 1, 2)):
        step = np.zeros_like(x)
        step[i, j] = 1e-6
        slope = (formula(x + step, y, **keys) - formula(x - step, y, **keys)) / 2e-6
        assert float(tensor.grad[i, j]) == pytest.approx(slope, abs=1e-7)


def test_the_weights_of_circle_have_no_gradient():
    """One pair of each kind: d loss / d cosines is the sigmoid times minus or plus gamma times the fixed weight."""
    x, y = numbers("p x k")
    x, y = x[[0, 1, 3]], y[[0, 1, 3]]
    cos = unit(x) @ unit(x).T
    m, gamma = 0.3, 8.0
    pull, push = (gamma * np.maximum(0, v) for v in (1 + m - cos, cos + m))
    z = {i: -pull[i, 1 - i] * (cos[i, 1 - i] - 1 + m) + push[i, 2] * (cos[i, 2] - m) for i in (0, 1)}
    to_cos = np.zeros((3, 3))  # the third image has no positive
    for i in (0, 1):
        sigmoid = 1 / (1 + np.exp(-z[i]))
        to_cos[i, 1 - i], to_cos[i, 2] = -sigmoid * pull[i, 1 - i] / 2, sigmoid * push[i, 2] / 2
    to_unit = (to_cos + to_cos.T) @ unit(x)
    expected = to_unit - (to_unit * unit(x)).sum(axis=1, keepdims=True) * unit(x)
    expected /= np.linalg.norm(x, axis=1, keepdims=True)
    tensor = paddle.to_tensor(x, "float64", stop_gradient=False)
    build("circle", m=m, gamma=gamma)(tensor, paddle.to_tensor(y)).backward()
    assert np.allclose(tensor.grad.numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("batch", NOTHING_TO_COMPARE)
@pytest.mark.parametrize("name", PAIRS)
def test_nothing_to_compare_is_0_with_gradient_0(name, batch):
    x, y = numbers(batch)
    tensor = paddle.to_tensor(x, "float32", stop_gradient=False)
    value = build(name)(tensor, paddle.to_tensor(y))
    value.backward()
    assert float(value) == 0.0 and np.array_equal(tensor.grad.numpy(), np.zeros_like(x))


@pytest.mark.parametrize("name", [*PAIRS, "proxy_anchor"])
@pytest.mark.parametrize("scale", [0.0, 1e-4, 1e4])
def test_duplicates_and_features_of_any_length_give_finite_gradients(name, scale):
    """Each image three times, one of length 0; euclidean, whose slope at 0 is infinite, too."""
    x = np.repeat(np.random.default_rng(0).standard_normal((4, SIZE)), 3, axis=0) * 10
    x[0] *= 0
    for keys in ({}, {"distance": "euclidean"}) if name == "triplet_batch_hard" else ({},):
        tensor = paddle.to_tensor(x * scale, "float32", stop_gradient=False)
        value = build(name, **keys)(tensor, paddle.to_tensor(np.repeat([0, 0, 1, 2], 3)))
        value.backward()
        assert np.isfinite(float(value)) and np.isfinite(tensor.grad.numpy()).all()


def test_solved_anchors_are_not_in_the_mean_and_nearly_solved_ones_are():
    """Paddle's own softplus is 0 below -17, and its exp is 1e-38 where it should be 0."""
    nearly = rows.softplus(paddle.to_tensor([-60.0, -20.0, 0.0, 50.0]))
    assert np.allclose(nearly.numpy(), [np.exp(-60), np.exp(-20), np.log(2), 50], rtol=1e-5, atol=0)
    solved = rows.softplus(paddle.full([8], -1e30))
    assert float(rows.mean_above_zero(paddle.concat([solved, nearly]))) == pytest.approx((np.log(2) + 50) / 4)
    assert float(rows.mean_above_zero(solved)) == 0.0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", [*PAIRS, "proxy_anchor"])
def test_half_precision_is_computed_in_float32(name, dtype):
    x, y = numbers("p x k")
    half = paddle.to_tensor(x, dtype)
    loss, labels = build(name), paddle.to_tensor(y)
    with paddle.amp.auto_cast(True, level="O2", dtype=dtype):
        value = loss(half, labels)
    assert value.dtype == paddle.float32
    assert float(value) == float(loss(half.astype("float32"), labels))


def proxy_anchor(x, y, proxies, margin, alpha):
    cos = unit(x) @ unit(proxies).T
    pull = push = 0.0
    for p in range(len(proxies)):
        pull += np.log1p(np.exp(-alpha * (cos[y == p, p] - margin)).sum()) / len(set(y))
        push += np.log1p(np.exp(alpha * (cos[y != p, p] + margin)).sum()) / len(proxies)
    return pull + push


@pytest.mark.parametrize("batch", BATCHES)
def test_proxy_anchor_in_numpy_and_its_slopes(batch):
    x, y = numbers(batch)
    loss = build("proxy_anchor", margin=0.2, alpha=4.0)
    proxies = loss.proxies.numpy().astype(float)
    features = paddle.to_tensor(x, "float32", stop_gradient=False)
    value = loss(features, paddle.to_tensor(y))
    value.backward()
    assert float(value) == pytest.approx(proxy_anchor(x, y, proxies, 0.2, 4.0), rel=1e-5)
    for gradient, of_features in ((features.grad, True), (loss.proxies.grad, False)):
        step = np.zeros(gradient.shape)
        step[0, 1] = 1e-6
        at = [(x + s * step, y, proxies) if of_features else (x, y, proxies + s * step) for s in (1, -1)]
        slope = (proxy_anchor(*at[0], 0.2, 4.0) - proxy_anchor(*at[1], 0.2, 4.0)) / 2e-6
        assert float(gradient[0, 1]) == pytest.approx(slope, abs=2e-5)


def test_proxies_start_at_class_means():
    loss = build("proxy_anchor")
    before = loss.proxies.numpy()
    means = unit(np.random.default_rng(3).standard_normal((CLASSES, SIZE))).astype("float32")
    means[2] = 0  # a class without images
    assert isinstance(loss, HasClassVectors) and not isinstance(build("supcon"), HasClassVectors)
    loss.set_class_means(means)
    after = loss.proxies.numpy()
    assert np.array_equal(after[[0, 1, 3, 4]], means[[0, 1, 3, 4]]) and np.array_equal(after[2], before[2])
    at_means = float(loss(paddle.to_tensor(means[:2] * 5), paddle.to_tensor([0, 1])))
    assert at_means < float(build("proxy_anchor")(paddle.to_tensor(means[:2] * 5), paddle.to_tensor([0, 1])))


def test_those_that_compare_images_say_so():
    """The training warns if its batches hold too few images of a class for them."""
    assert {s.name for s in LOSSES.added() if s.mines_pairs} >= {*PAIRS, "triplet_angular_margin"}
    assert not LOSSES.get("proxy_anchor").mines_pairs
