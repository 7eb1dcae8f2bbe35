"""What a training step costs the host on a GPU, counted on a CPU that claims to be one; late losses; the loss scale."""

from __future__ import annotations

import collections
import gc
import json
import weakref
from types import SimpleNamespace

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from support.networks import TINY_CLIP
from test_trainer import NoExport, metrics

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import TrainingError
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import recognizer
from paddlex_feat.training import checkpoint
from paddlex_feat.training.checkpoint import Progress, TrainingState
from paddlex_feat.training.ema import Ema
from paddlex_feat.training.loss_log import LossLog
from paddlex_feat.training.run_folder import RunFolder
from paddlex_feat.training.run_logger import RunLogger
from paddlex_feat.training.scaler import LossScaler
from paddlex_feat.training.step import Precision, Step, TrainingNetwork
from paddlex_feat.training.trainer import Trainer, TrainingPlan
from paddlex_feat.training.transfer import STEPS_AHEAD, Feed


def trainer(root, steps: int, step=None, ema: bool = False, **plan) -> Trainer:
    """Of `steps` steps in its only epoch."""
    paddle.seed(1)
    model = recognizer.build(TINY_CLIP, 3)
    optimizer = paddle.optimizer.Momentum(0.01, 0.9, model.parameters())
    state = TrainingState(model, optimizer, Progress())
    state.ema = Ema(state.raw_weights(), 0.9) if ema else None
    loss = recipe_loss(0, 1.0, 1.0)
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    settings = {"log_interval": 5, "eval_interval": 1, "save_interval": 1, "eval_start": False, **plan}
    return Trainer(
        state=state,
        step=step or Step(TrainingNetwork(model, Preprocess(32)), loss, optimizer),
        batches=lambda epoch, first: [(np.arange(6), images)] * (steps - first),
        labels=np.arange(6) % 3,
        files=[f"{i}.jpg" for i in range(6)],
        exporter=NoExport(),
        evaluate=lambda _: metrics(0.5),
        folder=RunFolder(root, 9),
        plan=TrainingPlan(epochs=1, steps_per_epoch=steps, learning_rate=0.01, warmup_epochs=0, seed=0, **settings),
        run_logger=RunLogger(root, 1, steps),
    )


class Gpu:
    """Device memory that is the CPU's. `counts`: what was done, by name; `pinned`: arrays in pinned memory."""

    def __init__(self) -> None:
        self.counts: collections.Counter[str] = collections.Counter()
        self.pinned: list[weakref.ref] = []
        self.polls = 0  # how often an event has to be asked until it has happened

    def pin(self, tensor):
        self.pinned.append(weakref.ref(tensor))
        return tensor

    def is_pinned(self, tensor) -> bool:
        return any(one() is tensor for one in self.pinned)


@pytest.fixture
def gpu(monkeypatch) -> Gpu:
    """Counts as `waits for the device`: a copy of an array that is not pinned, a blocking copy, and every way of
    reading a tensor's values, unless the tensor is in pinned memory; these are `reads of pinned memory`."""
    own, pinned_place, to_tensor = Gpu(), object(), paddle.to_tensor

    def copied(data, dtype=None, place=None, stop_gradient=True):
        if place is pinned_place:
            return own.pin(to_tensor(data, dtype, None, stop_gradient))
        own.counts["waits for the device"] += 1
        return to_tensor(data, dtype, place, stop_gradient)

    def cuda(tensor, device_id=None, blocking=True):
        own.counts["waits for the device" if blocking or not own.is_pinned(tensor) else "queued copies"] += 1
        return tensor.clone()

    def pin_memory(tensor, blocking=True):
        own.counts["waits for the device" if blocking else "queued copies"] += 1
        return own.pin(tensor.clone())

    class Event:
        def record(self):
            self.left = own.polls

        def query(self):
            self.left -= 1
            return self.left < 0

    def counting(method):
        def read(tensor, *arguments, **named):
            kind = "reads of pinned memory" if own.is_pinned(tensor) else "waits for the device"
            own.counts[kind] += 1
            return method(tensor, *arguments, **named)

        return read

    monkeypatch.setattr(paddle, "to_tensor", copied)
    monkeypatch.setattr(paddle, "CUDAPinnedPlace", lambda: pinned_place)
    monkeypatch.setattr(paddle, "get_device", lambda: "gpu:0")
    monkeypatch.setattr(paddle.device.cuda, "Event", Event)
    for name in ("numpy", "item", "tolist", "__float__", "__int__", "__bool__", "__index__", "__array__"):
        monkeypatch.setattr(paddle.Tensor, name, counting(getattr(paddle.Tensor, name)))
    monkeypatch.setattr(paddle.Tensor, "cuda", cuda)
    monkeypatch.setattr(paddle.Tensor, "pin_memory", pin_memory)
    return own


def test_no_step_waits_for_the_device(gpu, tmp_path):
    """Forward, losses, backward, update, average and log lines of 20 steps; two arrays a step."""
    own = trainer(tmp_path, 20, ema=True)
    gpu.counts.clear()
    own._train_epoch(0)
    assert gpu.counts["waits for the device"] == 0
    assert gpu.counts == {"queued copies": 2 * 20 + 4, "reads of pinned memory": 4}
    for waits in (float, int, bool, np.asarray, paddle.Tensor.tolist, paddle.Tensor.item):  # the counters do count
        gpu.counts.clear()
        waits(paddle.ones([]))
        assert gpu.counts["waits for the device"], waits


def test_pinned_memory_is_kept_until_the_gpu_has_done_the_step(gpu):
    """The event of a step is asked for before its arrays are let go of, and no step more than two ahead."""
    gpu.polls = 3
    feed, alive = Feed(), []
    for _ in range(5):
        feed(np.zeros((2, 3), np.uint8))
        gc.collect()
        alive.append([ref() is not None for ref in gpu.pinned])
        feed.end_step()
    assert alive[STEPS_AHEAD] == [True] * 3  # this step's and those of the two before
    assert alive[4] == [False, False, True, True, True]


def test_the_average_launches_one_operator_a_tensor_and_gives_the_bytes_of_three(tmp_path):
    layer = paddle.nn.Sequential(paddle.nn.Conv2D(3, 8, 3), paddle.nn.BatchNorm2D(8), paddle.nn.Linear(7, 5))
    own, rng = Ema(layer.state_dict(), 0.999), np.random.default_rng(3)
    expected = {name: tensor.clone() for name, tensor in own.state.items()}
    for step in range(1, 13):
        weights = layer.state_dict()
        for tensor in weights.values():
            tensor.set_value(rng.standard_normal(tensor.shape).astype("float32") * 10 ** rng.uniform(-3, 3))
        own.update(weights, step)
        rate = 1 - min(0.999, (1 + step) / (10 + step))
        for name, average in expected.items():
            average.add_((weights[name] - average) * rate)
            assert np.array_equal(own.state[name].numpy(), average.numpy()), name
    profiler = paddle.profiler.Profiler(targets=[paddle.profiler.ProfilerTarget.CPU], on_trace_ready=lambda _: None)
    profiler.start()
    own.update(weights, 13)
    profiler.stop()
    assert collections.Counter(operators(profiler)) == {"lerp_ dygraph": len(expected), "full dygraph": 1}


def operators(profiler) -> list[str]:
    """Names of the operators that were launched while a profiler ran."""
    nodes, found = list(profiler.profiler_result.get_data().values()), []
    while nodes:
        node = nodes.pop()
        nodes += node.children_node
        found += [node.name] if str(node.type) == "TracerEventType.Operator" else []
    return found


def test_weights_with_a_float32_copy_are_not_cast(monkeypatch):
    model = paddle.nn.Linear(3, 2)
    copies = {p.name: p.clone() for p in model.parameters()}
    model.to(dtype="bfloat16")
    masters = {model.weight.name: copies[model.weight.name]}
    optimizer = SimpleNamespace(state_dict=lambda: {"master_weights": masters})
    cast, astype = [], paddle.Tensor.astype
    monkeypatch.setattr(
        paddle.Tensor, "astype", lambda tensor, dtype: cast.append(tensor.name) or astype(tensor, dtype)
    )
    found = TrainingState(model, optimizer, Progress()).raw_weights()
    assert cast == [model.bias.name] and found["weight"] is copies[model.weight.name]
    assert list(found) == ["weight", "bias"] and all(tensor.dtype == paddle.float32 for tensor in found.values())


class Terms:
    """A step that computes nothing; its losses are those given."""

    scaler = SimpleNamespace(skipped=0, scale_tensor=None)
    grad_norm = None

    def __init__(self, losses: list[float]):
        self.losses = list(losses)

    def __call__(self, batches, measure=False):
        return {"loss": paddle.to_tensor(self.losses.pop(0), "float32")}


def test_losses_are_read_one_interval_late_and_all_of_them_by_a_flush():
    rows = []
    run_logger = SimpleNamespace(lap=lambda: 1.5, log_steps=lambda *row: rows.append(row))
    own, step = LossLog(run_logger, ["a.jpg", "b.jpg"], 2), Terms(list(range(1, 8)))
    seen = []
    for number in range(1, 8):
        own.add(3, number, 0.1 * number, np.arange(2), step(None), 0.25)
        if number % 3 == 0:
            own.end_interval(grad_norm=paddle.to_tensor(float(number)))
        seen.append(len(rows))
    assert seen == [0, 0, 0, 0, 0, 1, 1]
    own.flush(paddle.full([1], 64.0))
    assert [row[1] for row in rows] == [3, 6, 7]  # last step of each
    assert [row[4] for row in rows] == [{"loss": 2.0}, {"loss": 5.0}, {"loss": 7.0}]
    assert rows[0] == (3, 3, 3, pytest.approx(0.3), {"loss": 2.0}, 12, 0.75, 1.5, {"grad_norm": 3.0})
    assert rows[2][-1] == {"loss_scale": 64.0}
    own.flush()
    assert len(rows) == 3


def test_a_loss_that_is_not_finite_is_found_an_interval_late_with_its_own_step_and_rate(tmp_path):
    own = trainer(tmp_path, 12, Terms([1.0, float("nan"), *[1.0] * 10]), log_interval=3)
    with pytest.raises(TrainingError, match=r"(?s)step 2: loss nan.*4\.jpg"):
        own.fit()
    assert own.state.progress.step == 6 and not (tmp_path / "latest").exists()


@pytest.mark.parametrize("when", ["save_interval_minutes", "signal", "end"])
def test_nothing_is_saved_after_a_loss_that_was_not_finite(tmp_path, when):
    """The interval is long enough that no log line comes before the save."""
    own = trainer(tmp_path, 4, Terms([1.0, float("inf"), 1.0, 1.0]), log_interval=1000)
    if when == "save_interval_minutes":
        own._save_is_due = lambda: own.state.progress.step == 3
    elif when == "signal":
        own.batches = lambda *_: ((i, b) for n, (i, b) in enumerate(trainer(tmp_path, 4).batches(0, 0)) if stop(n))

        def stop(number):
            own.stop.received = number == 2
            return True

    with pytest.raises(TrainingError, match="step 2"):
        own.fit()
    assert own.state.progress.step == (4 if when == "end" else 3)
    assert not [path.name for path in tmp_path.glob("*/*.pdparams")]


def overflowing(step: Step, **settings) -> LossScaler:
    """Float16's scaler, switched on on a CPU, that finds every gradient infinite."""
    scaler = step.scaler
    values = {"enable": True, "scale": paddle.to_tensor([128.0]), "use_dynamic_loss_scaling": True, "incr_count": 9}
    values |= {"decr_ratio": 0.5, "decr_every_n_nan_or_inf": 1, "incr_every_n_steps": 2000, "decr_count": 0}
    values |= {"incr_ratio": 2.0, "optimizer_states": collections.defaultdict(step_state), **settings}
    for name, value in values.items():
        setattr(scaler, f"_{name}", value)

    def unscale(optimizer):
        scaler._found_inf = paddle.to_tensor([True])

    scaler._unscale = unscale
    return scaler


def step_state():
    from paddle.amp.grad_scaler import OptimizerState

    return {"state": OptimizerState.INIT}


@pytest.mark.parametrize("interval", [1, 4])
def test_a_run_whose_loss_scale_falls_to_nothing_ends(tmp_path, interval, capsys):
    own = trainer(tmp_path, 60, log_interval=interval)
    overflowing(own.step)
    before = {name: tensor.numpy() for name, tensor in own.state.model.state_dict().items()}
    with pytest.raises(TrainingError, match=r"(?s)the loss scale has fallen to .*bfloat16"):
        own.fit()
    assert all(np.array_equal(t.numpy(), before[n]) for n, t in own.state.model.state_dict().items())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss_scale"] for row in rows][:2] == [128 * 0.5**interval, 128 * 0.5 ** (2 * interval)]
    assert rows[-1]["step"] == {1: 22, 4: 24}[interval] and rows[-1]["loss_scale"] == 128 * 0.5 ** rows[-1]["step"]
    assert not (tmp_path / "latest").exists()


def test_a_run_that_skips_fifty_steps_in_a_row_ends(tmp_path):
    own = trainer(tmp_path, 80, log_interval=1000)
    overflowing(own.step, decr_every_n_nan_or_inf=10**6)
    with pytest.raises(TrainingError, match="the last 50 steps overflowed"):
        own.fit()
    assert own.state.progress.step == 50


def test_a_skipped_step_between_good_ones_is_no_fault(tmp_path):
    own = trainer(tmp_path, 6, log_interval=2)
    scaler, number = overflowing(own.step), iter(range(6))
    scaler._unscale = lambda _: setattr(scaler, "_found_inf", paddle.to_tensor([next(number) % 2 == 0]))
    seen, add = [], own._losses.add
    own._losses.add = lambda *step: seen.append(step[-1]) or add(*step)
    own.state.scaler = scaler
    own.fit()
    assert seen == [1, 0, 1, 0, 1, 0]
    assert checkpoint.read_progress(tmp_path / "latest/latest.pdstates").scaler["scale"] == [16.0]


class Half(paddle.nn.Layer):
    """A convolution and a depthwise one under the context that a step computes in."""

    def __init__(self, precision: Precision):
        super().__init__()
        self.precision = precision
        self.dense = paddle.nn.Conv2D(4, 8, 3)
        self.depthwise = paddle.nn.Conv2D(8, 8, 3, groups=8)

    def forward(self, x):
        with self.precision.autocast():
            return self.depthwise(self.dense(x))


def test_float16_takes_depthwise_convolutions_too(monkeypatch):
    """Seen in the captured graph, with bfloat16 in float16's place: a CPU has no kernel of the latter."""
    auto_cast, asked = paddle.amp.auto_cast, []

    def as_bfloat16(enable=True, custom_white_list=None, level="O1", dtype="float16"):
        asked.append((enable, custom_white_list, level, dtype))
        return auto_cast(enable, custom_white_list, level=level, dtype="bfloat16")

    monkeypatch.setattr(paddle.amp, "auto_cast", as_bfloat16)

    def types(precision: Precision) -> dict[str, str]:
        spec = [paddle.static.InputSpec([2, 4, 8, 8], "float32")]
        graph = paddle.jit.to_static(Half(precision), input_spec=spec, full_graph=True)
        block = graph.forward.concrete_program.main_program.global_block()
        return {op.name(): str(op.results()[0].dtype) for op in block.ops if "conv2d" in op.name()}

    full, half = "paddle.float32", "paddle.bfloat16"
    assert types(Precision("O1", "float16")) == {"pd_op.conv2d": half, "pd_op.depthwise_conv2d": half}
    assert types(Precision("O1", "bfloat16")) == {"pd_op.conv2d": half, "pd_op.depthwise_conv2d": full}
    assert types(Precision()) == {"pd_op.conv2d": full, "pd_op.depthwise_conv2d": full}
    assert asked[0] == (True, {"depthwise_conv2d"}, "O1", "float16")
