"""Items 2, 3, 4 and 10: do single steps on a GPU compute what they should?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from accept.bench import Bench, Line
from accept.networks import CLIP_BASE, CLIP_LARGE, IMAGES, Training, batch, build, exact, lowered, shitu
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.runtime.paddle_import import prepare_paddle

Gradients = tuple[float, dict[str, np.ndarray], dict[str, np.ndarray]]


def _gradients(spec: NetworkSpec, device: str, noise: float = 0.0) -> Gradients:
    """Loss, gradients and statistics after one forward and backward pass. noise: relative change of the weights."""
    import paddle

    training = build(spec, device)
    rng = np.random.default_rng(5)
    state = {n: t.numpy() for n, t in training.model.state_dict().items()}
    changed = {n: (v * (1 + noise * rng.standard_normal(v.shape))).astype(np.float32) for n, v in state.items()}
    training.model.set_state_dict(changed if noise else state)
    images, labels = batch(spec.input_size)
    targets = paddle.to_tensor(labels)
    features, logits = training.network(paddle.to_tensor(images), targets)
    loss = training.criterion(features, logits, targets)["loss"]
    loss.backward()
    gradients = {n: p.grad.numpy() for n, p in training.model.named_parameters() if p.grad is not None}
    statistics = {n: t.numpy() for n, t in training.model.state_dict().items() if n.endswith(("_mean", "_variance"))}
    return float(loss), gradients, statistics


def one_step(bench: Bench) -> Iterator[Line]:
    """The same batch and weights on the CPU and on the device, in float32 without TF32.

    Rounding moves some activations past the kinks of ReLU and of the triplet loss. How far that leads is measured by
    changing the weights in their last bit; the bounds are ten times that.
    """
    against = "GPU and CPU" if bench.gpu else "CPU and itself"
    specs = {"PP-ShiTuV2_rec": shitu(bench), "CLIP base, small": CLIP_BASE, "CLIP large, small": CLIP_LARGE}
    with exact():
        for name, spec in specs.items():
            own, other = _gradients(spec, "cpu"), _gradients(spec, bench.device)
            rounded = _gradients(spec, "cpu", 1e-7)
            loss, bound = abs(own[0] - other[0]), max(1e-5, 10 * abs(own[0] - rounded[0]))
            yield bench.line(f"loss of {name}, {against}", loss, f"<= {bound:.1e}", loss <= bound)
            (angle, worst), limit = _worst(own[1], other[1]), 1e-4 + 10 * _worst(own[1], rounded[1])[0]
            figure = f"{angle:.1e} {worst}"
            yield bench.line(f"gradients of {name}, worst 1 - cosine", figure, f"<= {limit:.1e}", angle <= limit)
            if own[2]:
                yield _statistics(bench, name, own[2], other[2])


def _worst(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> tuple[float, str]:
    """The largest 1 - cosine of a tensor, and its name; tensors that are nothing but rounding are left out."""
    least = max(float(np.linalg.norm(g)) for g in one.values()) * 1e-6
    return max((1 - _cosine(g, other[n]), n) for n, g in one.items() if np.linalg.norm(g) > least)


def _statistics(bench: Bench, name: str, one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> Line:
    means = max(float(np.abs(one[n] - other[n]).max()) for n in one if n.endswith("_mean"))
    variances = max(
        float((np.abs(one[n] - other[n]) / np.maximum(one[n], 1e-3)).max()) for n in one if n.endswith("_variance")
    )
    # cuDNN's running variance is the unbiased one, n / (n - 1) times the CPU's; the neck's n is the batch.
    bound = 0.1 / (IMAGES - 1) + 1e-3
    return bench.line(
        f"BatchNorm of {name}: means, variances (relative)",
        f"{means:.1e}, {variances:.1e}",
        f"<= 1e-4, {bound:.1e}",
        means <= 1e-4 and variances <= bound,
    )


def _cosine(a: np.ndarray, b: np.ndarray) -> float:
    a, b = a.ravel().astype(np.float64), b.ravel().astype(np.float64)
    return float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-30))


@dataclass
class Outcome:
    """Losses of some steps on one batch, the first update of the weights, dtypes of head and depthwise layers."""

    losses: list[float]
    update: np.ndarray
    head: set[str]
    depthwise: set[str]


def _train(spec: NetworkSpec, bench: Bench, level: str = "OFF", dtype: str = "float16", **options: Any) -> Outcome:
    """20 optimizer steps on one batch, on a CPU 3."""
    from paddle import nn

    from paddlex_feat.training.step import Precision

    training = build(spec, bench.device, level != "OFF")
    before = _flat(training)
    lowered(training, level, dtype)
    outcome = Outcome([], before, set(), set())
    if not options.get("compiled"):  # there a hook would be captured too
        for layer in training.model.sublayers():
            if isinstance(layer, nn.Conv2D) and layer._groups > 1:
                layer.register_forward_post_hook(lambda _, __, out: outcome.depthwise.add(_name(out)))
        training.model.head.register_forward_post_hook(lambda _, __, out: outcome.head.add(_name(out)))
    step = training.step(Precision(level, dtype), **options)
    for number in range(20 if bench.gpu else 3):
        outcome.losses.append(float(step([batch(spec.input_size)])["loss"]))
        if not number:
            outcome.update = _flat(training) - before
    return outcome


def _flat(training: Training) -> np.ndarray:
    """All parameters as one vector, float64."""
    parameters = (p.astype("float32").numpy().ravel() for p in training.model.parameters())
    return np.concatenate(list(parameters)).astype(np.float64)


def _name(tensor: Any) -> str:
    return str(tensor.dtype).rpartition(".")[2]


def _half_types(bench: Bench) -> Iterator[str]:
    """The half precisions that the card has."""
    bench.require_gpus()
    import paddle

    if paddle.amp.is_float16_supported():
        yield "float16"
    if paddle.amp.is_bfloat16_supported():
        yield "bfloat16"


def mixed_precision(bench: Bench) -> Iterator[Line]:
    """20 steps in half precision against float32: the first loss is near, and the loss falls as fast."""
    bench.require_gpus()
    for name, spec in (("PP-ShiTuV2_rec", shitu(bench)), ("CLIP", CLIP_BASE)):
        plain = _train(spec, bench).losses
        for dtype in _half_types(bench):
            for level in ("O1", "O2"):
                found = _train(spec, bench, level, dtype)
                away = abs(found.losses[0] / plain[0] - 1)
                falls, own = (float(np.mean(losses[-5:])) / losses[0] for losses in (plain, found.losses))
                yield bench.line(
                    f"{name} {level} {dtype}: first loss to float32, last to first",
                    f"{away:.1e}, {own:.2f} (float32 {falls:.2f})",
                    "<= 5e-2, +- 0.15",
                    away <= 0.05 and abs(own - falls) <= 0.15,
                )
                yield bench.line(
                    f"{name} {level} {dtype}: dtype of head, depthwise",
                    f"{'/'.join(found.head)}, {'/'.join(found.depthwise) or 'none'}",
                    "head float32",
                    found.head == {"float32"},
                )


def overflow(bench: Bench) -> Iterator[Line]:
    """One gradient that is not finite: the step is skipped and the loss scale halved."""
    bench.require_gpus()
    from paddlex_feat.training.step import Precision

    for level in ("O1", "O2"):
        training = build(shitu(bench), bench.device, True)
        lowered(training, level, "float16")
        step = training.step(Precision(level, "float16"))
        step([batch(shitu(bench).input_size)])
        scale, before = _scale(step), {n: p.numpy() for n, p in training.model.named_parameters()}
        parameter = next(p for n, p in training.model.named_parameters() if p.ndim == 4)
        hook = parameter.register_hook(lambda gradient: gradient * float("inf"))
        step([batch(shitu(bench).input_size)])
        hook.remove()
        changed = sum(not np.array_equal(p.numpy(), before[n]) for n, p in training.model.named_parameters())
        ratio = _scale(step) / scale
        yield bench.line(
            f"{level} float16, overflow: weights changed, scale",
            f"{changed}, x {ratio:g}",
            "0, x 0.5",
            changed == 0 and ratio == 0.5,
        )
        step([batch(shitu(bench).input_size)])
        changed = sum(not np.array_equal(p.numpy(), before[n]) for n, p in training.model.named_parameters())
        yield bench.line(f"{level} float16: tensors that the next step changes", changed, "> 0", changed > 0)


def _scale(step: Any) -> float:
    return float(np.asarray(step.scaler.state_dict()["scale"]).reshape(-1)[0])


def accumulation(bench: Bench) -> Iterator[Line]:
    """Four batches of a quarter make the update of one; BatchNorm in evaluation mode, no triplet loss."""
    images, labels = batch(shitu(bench).input_size, 4 * IMAGES)
    weights = []
    with exact():
        for parts in (1, 4):
            training = build(shitu(bench), bench.device, triplet=0.0)
            training.model.eval()
            before = {n: p.numpy() for n, p in training.model.named_parameters()}
            training.step()(list(zip(np.split(images, parts), np.split(labels, parts), strict=True)))
            weights.append({n: p.numpy() - before[n] for n, p in training.model.named_parameters()})
    one, four = (np.concatenate([w.ravel() for w in update.values()]).astype(np.float64) for update in weights)
    away = float(np.linalg.norm(one - four) / np.linalg.norm(one))
    yield bench.line("accumulate 4 x 16 and 1 x 64: relative difference of the update", away, "<= 1e-3", away <= 1e-3)


def clipping(bench: Bench) -> Iterator[Line]:
    """The first update of SGD with momentum has the length learning rate times max_grad_norm, in every precision."""
    from paddlex_feat.training.step import Precision

    limit = 0.01
    levels = [("OFF", "float16"), *(("O2", dtype) for dtype in (_half_types(bench) if bench.gpu else ()))]
    for level, dtype in levels:
        training = build(CLIP_BASE, bench.device, level != "OFF", clip=limit)
        before = {n: p.numpy() for n, p in training.model.named_parameters()}
        lowered(training, level, dtype)
        training.step(Precision(level, dtype))([batch(CLIP_BASE.input_size)])
        masters = training.optimizer.state_dict().get("master_weights", {})
        square = sum(
            float(((masters.get(p.name, p).astype("float32").numpy() - before[n]).astype(np.float64) ** 2).sum())
            for n, p in training.model.named_parameters()
        )
        ratio = square**0.5 / (training.optimizer.get_lr() * limit)
        title = f"max_grad_norm {level}{' ' + dtype if level != 'OFF' else ''}: length of the update, bound = 1"
        yield bench.line(title, ratio, "1 +- 0.02", abs(ratio - 1) <= 0.02)
    if not bench.gpu:
        yield bench.not_run("max_grad_norm O2", "mixed precision needs a GPU")


def moving_average(bench: Bench) -> Iterator[Line]:
    """The moving average against NumPy's."""
    training = build(CLIP_BASE, bench.device)
    from paddlex_feat.training.ema import Ema

    step, decay = training.step(), 0.9
    ema = Ema(training.model.state_dict(), decay)
    mine = {n: t.numpy().astype(np.float64) for n, t in training.model.state_dict().items()}
    for number in range(1, 6):
        step([batch(CLIP_BASE.input_size, seed=number)])
        ema.update(training.model.state_dict(), number)
        rate = 1 - min(decay, (1 + number) / (10 + number))
        for name, tensor in training.model.state_dict().items():
            mine[name] += rate * (tensor.numpy() - mine[name])
    away = max(float(np.abs(ema.state[n].numpy() - mine[n]).max()) for n in mine)
    yield bench.line("moving average of 5 steps, to NumPy's", away, "<= 1e-6", away <= 1e-6)


def _compare(bench: Bench, name: str, plain: Outcome, other: Outcome) -> Line:
    loss, cosine = abs(plain.losses[0] - other.losses[0]), _cosine(plain.update, other.update)
    figure = f"{loss:.1e}, {cosine:.6f}"
    return bench.line(
        f"{name}: first loss to the plain one, cosine of the updates",
        figure,
        "<= 1e-4, >= 0.99",
        loss <= 1e-4 and cosine >= 0.99 and all(map(np.isfinite, other.losses)),
    )


def compiled(bench: Bench) -> Iterator[Line]:
    """Train.dy2st."""
    prepare_paddle()
    import paddle

    if not bench.gpu:  # as mode train does: oneDNN's gradients of a compiled graph crash
        paddle.set_flags({"FLAGS_use_mkldnn": False})
    with exact():
        for name, spec in (("PP-ShiTuV2_rec", shitu(bench)), ("CLIP", CLIP_BASE)):
            plain = _train(spec, bench)
            yield _compare(bench, f"dy2st, {name}", plain, _train(spec, bench, compiled=True))


def tuned(bench: Bench) -> Iterator[Line]:
    """Train.autotune."""
    bench.require_gpus()
    import paddle

    with exact():
        plain = _train(shitu(bench), bench)
        paddle.incubate.autotune.set_config({"kernel": {"enable": True}, "layout": {"enable": True}})
        yield _compare(bench, "autotune, PP-ShiTuV2_rec", plain, _train(shitu(bench), bench))
