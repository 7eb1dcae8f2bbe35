"""One step at a time against a second route: gradients, schedule, decay, accumulation, averages, freezing."""

from __future__ import annotations

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from support.networks import TINY_CLIP

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ConfigError
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.heads import LinearHead
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.training import checkpoint
from paddlex_feat.training.checkpoint import Progress, TrainingState
from paddlex_feat.training.ema import Ema
from paddlex_feat.training.freeze import freeze
from paddlex_feat.training.schedule import warmup_cosine
from paddlex_feat.training.step import Step, TrainingNetwork

RNG = np.random.default_rng(5)


def softmax(z: np.ndarray) -> np.ndarray:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def recipe_gradients(features: np.ndarray, weight: np.ndarray, labels: np.ndarray):
    """CE_eps + L_TAM of the recipe in float64, in closed form: terms, d/dfeatures, d/dweight."""
    n, classes, eps = len(labels), weight.shape[1], 0.1
    logits = features @ weight
    p = softmax(logits)
    q = (1 - eps) * np.eye(classes)[labels] + eps / classes
    ce = -(q * np.log(p)).sum(axis=1).mean()
    d_logits = (p - q) / n
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    unit = features / norms
    s = unit @ unit.T
    same = labels[:, None] == labels[None, :]
    hardest_positive = np.where(same, s, np.inf).argmin(axis=1)
    hardest_negative = np.where(same, -np.inf, s).argmax(axis=1)
    rows = np.arange(n)
    pos, neg = s[rows, hardest_positive], s[rows, hardest_negative]
    tam = np.maximum(0, neg - pos + 0.5).mean() + 0.1 * (
        np.maximum(0, 0.8 - pos).mean() + np.maximum(0, neg - 0.4).mean()
    )
    d_s = np.zeros_like(s)
    active = neg - pos + 0.5 > 0
    np.add.at(d_s, (rows, hardest_negative), (active + 0.1 * (neg > 0.4)) / n)
    np.add.at(d_s, (rows, hardest_positive), -(active + 0.1 * (pos < 0.8)) / n)
    d_unit = (d_s + d_s.T) @ unit
    d_features = (d_unit - unit * (d_unit * unit).sum(axis=1, keepdims=True)) / norms
    return ce, tam, d_features + d_logits @ weight.T, features.T @ d_logits


def test_loss_terms_and_every_gradient_equal_float64():
    """The whole recipe loss on a neck output, down to the head's weights."""
    features, labels = RNG.standard_normal((16, 12)) * 2, np.repeat(np.arange(4), 4)
    head = LinearHead(12, 7)
    head.fc.weight.set_value(RNG.standard_normal((12, 7)).astype("float32"))
    x = paddle.to_tensor(features.astype("float32"), stop_gradient=False)
    terms = recipe_loss()(x, head(x), paddle.to_tensor(labels))
    terms["loss"].backward()
    ce, tam, d_features, d_weight = recipe_gradients(
        features.astype("float32").astype("float64"), head.fc.weight.numpy().astype("float64"), labels
    )
    assert float(terms["CELoss"]) == pytest.approx(ce, abs=1e-5)
    assert float(terms["TripletAngularMarginLoss"]) == pytest.approx(tam, abs=1e-5)
    assert np.abs(x.grad.numpy() - d_features).max() <= 1e-5
    assert np.abs(head.fc.weight.grad.numpy() - d_weight).max() <= 1e-5


@pytest.mark.parametrize("multi_tensor", [False, True])
def test_schedule_momentum_and_decay_equal_a_replay_step_by_step(multi_tensor):
    """200 steps of the recipe's optimizer under a constant gradient, beside its formulas in float64.

    The gradient does not shrink with the weights, so each step's decay stays visible; BatchNorm has none.
    """
    model = recognizer.build(NetworkSpec(), 3)
    named = dict(model.named_parameters())
    names = {"head.fc.weight": 0.02, "backbone.last_conv.weight": 0.02, "backbone.stem.0.bn.weight": 0.0}
    parameters = [named[n] for n in names]
    optimizer = paddle.optimizer.Momentum(0.1, 0.9, parameters, weight_decay=0.02, use_multi_tensor=multi_tensor)
    pulls = [RNG.standard_normal(p.shape) for p in parameters]
    values = [p.numpy().astype("float64") for p in parameters]
    velocity = [np.zeros_like(v) for v in values]
    without_decay = [v.copy() for v in values]
    for step in range(200):
        rate = warmup_cosine(0.1, step, 20, 10, 2)
        expected_rate = 0.1 * step / 40 if step < 40 else 0.05 * (1 + np.cos(np.pi * (step - 40) / 160))
        assert rate == pytest.approx(expected_rate, abs=1e-12)
        optimizer.set_lr(rate)
        sum(
            (p * paddle.to_tensor(g.astype("float32"))).sum() for p, g in zip(parameters, pulls, strict=True)
        ).backward()
        optimizer.step()
        optimizer.clear_grad()
        state = {k: v for k, v in optimizer.state_dict().items() if "velocity" in k}
        for i, decay in enumerate(names.values()):
            velocity[i] = 0.9 * velocity[i] + pulls[i].astype("float32") + decay * values[i]
            values[i] = values[i] - rate * velocity[i]
            own = state[f"{parameters[i].name}_velocity_0"].numpy()
            for got, expected in ((parameters[i].numpy(), values[i]), (own, velocity[i])):
                assert np.abs(got - expected).max() <= 1e-5 * max(1, np.abs(expected).max()), (step, i)
    assert all(np.abs(v - w).max() > 1 for v, w in zip(values, without_decay, strict=True))
    # The replay tells decay from no decay: at the end they are far apart.
    gap = np.abs(values[0] - (without_decay[0] - pulls[0] * 60)).max()
    assert gap > 1


def batch(n: int, size: int = 32, classes: int = 3, seed: int = 0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, size, size, 3), dtype=np.uint8), rng.integers(0, classes, n)


def stepper(model, rate: float = 0.1, triplet: float = 0.0, **options):
    criterion = recipe_loss(0, 1.0, triplet)
    optimizer = paddle.optimizer.Momentum(rate, 0.9, model.parameters())
    return Step(TrainingNetwork(model, Preprocess(32)), criterion, optimizer, **options)


def weights_of(model) -> dict[str, np.ndarray]:
    return {n: t.numpy().copy() for n, t in model.state_dict().items()}


def tiny_clip():
    paddle.seed(1)
    return recognizer.build(TINY_CLIP, 3)


def test_accumulating_batches_is_one_step_with_the_whole():
    """Without BatchNorm the two are the same up to rounding; batches of 6 and 2 count by their images."""
    images, labels = batch(8)
    whole, parts = tiny_clip(), tiny_clip()
    a = stepper(whole)([(images, labels)])
    b = stepper(parts)([(images[:6], labels[:6]), (images[6:], labels[6:])])
    assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-5)
    for (name, x), y in zip(weights_of(whole).items(), weights_of(parts).values(), strict=True):
        assert np.abs(x - y).max() <= 2e-6, name


def test_compiling_the_network_changes_nothing_but_speed():
    images, labels = batch(4)
    plain, compiled = tiny_clip(), tiny_clip()
    names = list(compiled.state_dict())
    for model, step in ((plain, stepper(plain)), (compiled, stepper(compiled, compiled=True))):
        for _ in range(3):
            step([(images, labels)])
        assert list(model.state_dict()) == names
    for (name, x), y in zip(weights_of(plain).items(), weights_of(compiled).values(), strict=True):
        assert np.abs(x - y).max() <= 1e-5, name


def test_the_state_of_the_loss_scaler_is_in_a_checkpoint(tmp_path):
    class Scaler:
        """Stands for Paddle's, which switches itself off on a CPU."""

        def state_dict(self):
            return {"scale": np.array([512.0], np.float32), "incr_count": 7}

    layer = paddle.nn.Linear(2, 2)
    optimizer = paddle.optimizer.Momentum(0.1, 0.9, layer.parameters())
    checkpoint.snapshot(TrainingState(layer, optimizer, Progress(), scaler=Scaler())).write(tmp_path, "x")
    assert checkpoint.read_progress(tmp_path / "x.pdstates").scaler == {"scale": [512.0], "incr_count": 7}


def test_float32_copies_of_low_precision_weights_keep_their_momentum(tmp_path):
    """Paddle's O2 does nothing on a CPU, so the network is cast by hand; names, copies and momentum are the same."""

    def low(path=None):
        model = paddle.nn.Linear(3, 2)
        optimizer = paddle.optimizer.Momentum(0.1, 0.9, model.parameters())
        optimizer._multi_precision = True
        state = TrainingState(model, optimizer, Progress(step=1))
        if path:
            checkpoint.resume(path, state)
        before = {n: p.clone() for n, p in model.named_parameters()}
        model.to(dtype="bfloat16")
        state.set_master_weights(before)
        if path:
            checkpoint.resume_optimizer(path, state)
        optimizer._create_accumulators(paddle.static.default_main_program().global_block(), model.parameters())
        return state

    first = low()
    exact = {n: np.array(v.numpy()) for n, v in first.raw_weights().items()}
    assert all(v.dtype == np.float32 for v in exact.values())
    for holder in first.optimizer._accumulators["velocity"].values():
        holder.set_value(np.full(holder.shape, 0.5, "float32"))
    checkpoint.snapshot(first).write(tmp_path, "x")
    assert set(weights.read(tmp_path / "x.pdopt")) == {"weight:velocity_0", "bias:velocity_0"}
    again = low(tmp_path / "x.pdparams")
    for name, value in again.raw_weights().items():
        assert np.array_equal(value.numpy(), exact[name])  # not the rounded ones
    velocity = again.optimizer._accumulators["velocity"]
    assert len(velocity) == 2 and all(float(v.min()) == 0.5 for v in velocity.values())


def test_ema_equals_a_float64_replay():
    layer = paddle.nn.BatchNorm1D(4)
    ema = Ema(layer.state_dict(), 0.9)
    expected = {n: t.numpy().astype("float64") for n, t in layer.state_dict().items()}
    for step in range(1, 30):
        layer(paddle.to_tensor(RNG.standard_normal((8, 4)), "float32"))
        layer.weight.set_value(RNG.standard_normal(4).astype("float32"))
        ema.update(layer.state_dict(), step)
        decay = min(0.9, (1 + step) / (10 + step))
        for name, tensor in layer.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * tensor.numpy()
    for name, value in expected.items():
        assert np.allclose(ema.state[name].numpy(), value, atol=1e-6), name


def test_frozen_parameters_and_their_statistics_do_not_move():
    model = recognizer.build(NetworkSpec(input_size=32), 3)
    still = freeze(model, ["backbone.stem", "backbone.stages.0.*", "neck.feat_bn.weight"])
    before = weights_of(model)
    step = stepper(model)
    model.train()
    for layer in still:
        layer.eval()
    step([batch(6)])
    changed = {n for n, v in weights_of(model).items() if not np.array_equal(v, before[n])}
    assert changed and not [n for n in changed if n.startswith(("backbone.stem", "backbone.stages.0."))]
    assert "neck.feat_bn.weight" not in changed and "neck.feat_bn._mean" in before


def test_freezing_the_shifts_alone_lets_the_scales_train():
    """Paddle would take the gradient of a BatchNorm's scale away with that of its shift."""
    model = recognizer.build(NetworkSpec(input_size=32), 3)
    assert not freeze(model, ["backbone.stem.*.bn.bias"])
    before = weights_of(model)
    stepper(model)([batch(6)])
    moved = {n for n, v in weights_of(model).items() if not np.array_equal(v, before[n])}
    assert "backbone.stem.0.bn.weight" in moved and "backbone.stem.0.bn.bias" not in moved


def test_freezing_nothing_or_everything_is_an_error():
    model = recognizer.build(NetworkSpec(input_size=32), 3)
    with pytest.raises(ConfigError, match=r"backbone\.stem"):
        freeze(model, ["backbone.stemm"])
    with pytest.raises(ConfigError, match="nothing is left"):
        freeze(model, ["*"])
