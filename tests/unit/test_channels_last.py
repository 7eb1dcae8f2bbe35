"""Training with channels last on a CPU: outputs, gradients and names as with Paddle's native operators."""

from __future__ import annotations

import numpy as np
import pytest
from support.networks import SPECS

paddle = pytest.importorskip("paddle")

from paddle import nn

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import channels_last, cpu_conv, depthwise, normalized_sum, recognizer
from paddlex_feat.models.compiled_kernels import Loops
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.training.freeze import batchnorms, freeze
from paddlex_feat.training.step import Step, TrainingNetwork

LITE = NetworkSpec(backbone="EfficientNet_Lite0", embedding_size=1280, neck="linear")
NETWORKS = {"PP-ShiTuV2_rec": SPECS["PP-ShiTuV2_rec"], "EfficientNet_Lite0_rec": LITE}


@pytest.fixture(autouse=True)
def onednn():
    """As a training on a CPU sets it; tests/conftest.py takes it back."""
    paddle.set_flags({"FLAGS_use_mkldnn": True})


LOOPS = Loops(2)
RNG = np.random.default_rng(0)


def tensor(*shape: int):
    found = paddle.to_tensor(RNG.normal(size=shape).astype("float32"))
    found.stop_gradient = False
    return found


def assert_same(found, expected, tolerance: float = 1e-5):
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


def cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other)))


@pytest.mark.parametrize(
    "size, channels, kernel, stride",
    [
        ((7, 7), 8, 5, 1),
        ((4, 9), 130, 5, 1),
        ((2, 2), 16, 5, 1),
        ((5, 6), 3, 7, 1),
        ((9, 9), 40, 5, 2),
        ((8, 5), 8, 3, 2),
    ],
)
def test_gradients_of_depthwise_weights_are_those_of_paddle(size, channels, kernel, stride):
    conv = nn.Conv2D(channels, channels, kernel, stride, kernel // 2, groups=channels, bias_attr=False)
    x = tensor(3, channels, *size)
    y = conv(x)
    weights = tensor(*y.shape).detach()
    (y * weights).sum().backward()
    expected = conv.weight.grad.clone()
    conv.clear_gradients()
    last, of_y = (t.detach().transpose([0, 2, 3, 1]) for t in (x, y))
    last.stop_gradient = of_y.stop_gradient = False
    found = depthwise.add_weight_gradient(of_y * 1, last, conv, LOOPS)
    (found * weights.transpose([0, 2, 3, 1])).sum().backward()
    assert_same(found, y.transpose([0, 2, 3, 1]))
    assert_same(conv.weight.grad, expected)
    assert_same(of_y.grad, weights.transpose([0, 2, 3, 1]))


def test_a_depthwise_convolution_of_constant_maps_still_learns():
    conv = nn.Conv2D(4, 4, 5, padding=2, groups=4, bias_attr=False)
    x, y = (tensor(2, 6, 6, 4).detach() for _ in range(2))
    depthwise.add_weight_gradient(y, x, conv, LOOPS).sum().backward()
    assert y.grad is None and float(conv.weight.grad.abs().max()) > 0


@pytest.mark.parametrize(
    "settings, taken",
    [
        ({"kernel_size": 5, "padding": 2, "groups": 8}, True),
        ({"kernel_size": 5, "padding": [2, 2, 2, 2], "groups": 8}, True),
        ({"kernel_size": 3, "padding": 1, "groups": 8}, False),
        ({"kernel_size": 5, "padding": [1, 2, 1, 2], "groups": 8, "stride": 2}, True),
        ({"kernel_size": 5, "padding": 4, "groups": 8, "dilation": 2}, False),
        ({"kernel_size": 5, "padding": 2}, False),
    ],
)
def test_only_large_depthwise_kernels_are_taken(settings, taken):
    assert depthwise.takes(nn.Conv2D(8, 8, bias_attr=False, **settings)) is taken


def normalized(
    count: int, limits: normalized_sum.Limits, at_rest: bool, loops: Loops | None, offset: float = 0.0
) -> list[np.ndarray]:
    """Output, gradients and statistics of `count` BatchNorm layers added up."""
    draw = np.random.default_rng(0)
    norms = [nn.BatchNorm2D(24, data_format="NHWC", momentum=0.7, epsilon=1e-3) for _ in range(count)]
    for norm in norms:
        norm.weight.set_value(draw.standard_normal(24).astype("float32"))
        norm.bias.set_value(draw.standard_normal(24).astype("float32"))
        if at_rest:
            norm.eval()
        if loops is not None:
            norm.loops = loops
    maps = [paddle.to_tensor(draw.normal(offset, 3, (5, 70, 9, 24)).astype("float32")) for _ in norms]
    for x in maps:
        x.stop_gradient = False
    y = normalized_sum.normalized_sum(maps, norms, limits)
    (y * paddle.to_tensor(draw.standard_normal(y.shape).astype("float32"))).sum().backward()
    gradients = [x.grad for x in maps] + [p.grad for norm in norms for p in (norm.weight, norm.bias)]
    return [t.numpy() for t in (y, *gradients, *(t for norm in norms for t in (norm._mean, norm._variance)))]


LIMITS = [normalized_sum.NONE, normalized_sum.RELU, normalized_sum.RELU6]


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("at_rest", [False, True])
def test_batchnorm_in_compiled_loops_is_that_of_paddle(count, limits, at_rest):
    found, expected = (normalized(count, limits, at_rest, loops) for loops in (LOOPS, None))
    for one, other in zip(found, expected, strict=True):
        assert np.abs(one - other).max() <= 1e-4 * max(1, np.abs(other).max())


def test_large_means_cost_batchnorm_no_digits():
    near, far = (normalized(1, normalized_sum.NONE, False, LOOPS, offset) for offset in (0.0, 1000.0))
    assert np.abs(near[0] - far[0]).max() < 1e-3  # 1000 + x has four digits of x in float32


def test_the_number_of_threads_changes_no_bit():
    one, two = (normalized(3, normalized_sum.RELU, False, Loops(threads)) for threads in (1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))


def test_values_that_are_not_numbers_stay_so():
    norm = nn.BatchNorm2D(4, data_format="NHWC")
    norm.loops = LOOPS
    x = tensor(2, 3, 3, 4)
    spoilt = paddle.where(paddle.arange(72).reshape([2, 3, 3, 4]) == 5, paddle.to_tensor(np.nan), x)
    assert np.isnan(normalized_sum.normalized_sum([spoilt], [norm]).numpy()).any()


def test_mean_and_gate_of_channels_are_those_of_the_plain_operators():
    x, gate = tensor(3, 4, 5, 6), tensor(3, 1, 1, 6)
    plain_x, plain_gate = (t.detach() for t in (x, gate))
    plain_x.stop_gradient = plain_gate.stop_gradient = False
    weights = tensor(3, 4, 5, 6).detach()
    found, expected = channels_last.scale_channels(x, gate), plain_x * plain_gate
    assert_same(found, expected)
    ((found * weights).sum() + channels_last.pixel_mean(x).square().sum()).backward()
    ((expected * weights).sum() + plain_x.mean([1, 2], keepdim=True).square().sum()).backward()
    assert_same(x.grad, plain_x.grad)
    assert_same(gate.grad, plain_gate.grad)


@pytest.mark.parametrize("name", ["PP-ShiTuV2_rec", "EfficientNet_Lite0_rec"])
@pytest.mark.parametrize("statistics", ["trained", "frozen"])
@pytest.mark.parametrize("threads", [None, 2])
def test_networks_keep_names_outputs_and_gradients(name, statistics, threads):
    paddle.seed(1)
    networks = [recognizer.build(NETWORKS[name], 5) for _ in range(2)]
    native, fast = networks
    fast.set_state_dict(native.state_dict())
    names = list(native.state_dict())
    assert cpu_conv.accelerate(fast, channels_last=True, threads=threads)
    assert all(hasattr(norm, "loops") is bool(threads) for norm in batchnorms(fast.backbone))
    assert cpu_conv.has_channels_last(fast) and not cpu_conv.has_channels_last(native)
    assert list(fast.state_dict()) == names
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype("float32"))

    def step(model):
        model.train()
        if statistics == "frozen":
            for layer in batchnorms(model):
                layer.eval()
        paddle.seed(2)  # the same dropout
        features = model(images)
        (features * paddle.linspace(-1, 1, features.shape[1])).mean().backward()
        return features

    thread = cpu_conv.thread_for_channels_last()
    # Statistics of four images make 0.0005 of a change of 0.000001 in the images.
    assert_same(thread.submit(step, fast).result(), step(native), 5e-3 if statistics == "trained" else 1e-4)
    own, others = (
        {n: p.grad.numpy().ravel() for n, p in model.named_parameters() if p.grad is not None} for model in networks
    )
    assert own.keys() == others.keys()
    # A value that rounding moves across the kink of a ReLU changes gradients: directions are compared, not digits.
    whole, found = (np.concatenate(list(gradients.values())) for gradients in (own, others))
    assert cosine(whole, found) > 0.999
    assert min(cosine(own[name], others[name]) for name in own if np.abs(own[name]).max() > 1e-6) > 0.99
    for key, value in native.state_dict().items():  # statistics move alike
        if float(value.abs().max()) > 1e-6:
            assert_same(fast.state_dict()[key], value, 1e-4)


def test_a_network_with_channels_first_trains_after_one_with_channels_last():
    """In one process: Paddle would end it if both ran in one thread."""
    for last in (True, False, True):
        model = recognizer.build(LITE, 4)
        assert cpu_conv.accelerate(model, channels_last=last)
        optimizer = paddle.optimizer.SGD(0.01, model.parameters())
        step = Step(TrainingNetwork(model, Preprocess(32)), recipe_loss(), optimizer)
        images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
        assert np.isfinite(float(step([(images, np.arange(8) // 2)])["loss"]))


def test_frozen_first_layers_stay_and_the_others_learn():
    model = recognizer.build(LITE, 4)
    still = freeze(model, ["backbone.stem", "backbone.blocks.0"])
    assert cpu_conv.accelerate(model, channels_last=True, threads=2)
    before = {name: value.numpy().copy() for name, value in model.named_parameters()}
    optimizer = paddle.optimizer.SGD(1.0, [p for p in model.parameters() if not p.stop_gradient])
    network = TrainingNetwork(model, Preprocess(32))
    network.train()
    for layer in still:  # as the trainer does
        layer.eval()
    step = Step(network, recipe_loss(), optimizer)
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    step([(images, np.arange(8) // 2)])
    moved = {name for name, value in model.named_parameters() if not np.array_equal(before[name], value.numpy())}
    first = {name for name in before if name.startswith(("backbone.stem", "backbone.blocks.0."))}
    assert still and first and not moved & first
    assert {name for name in before if name.startswith("backbone.blocks.1.") and "conv" in name} <= moved


def _fails(*_):
    raise ValueError("no such program")


@pytest.mark.parametrize("check", [lambda *_: False, _fails])
def test_a_processor_whose_results_disagree_trains_with_channels_first_and_says_so(check, monkeypatch, caplog):
    monkeypatch.setattr(cpu_conv, "_all_agree_channels_last", check)
    model = recognizer.build(LITE, 4)
    assert cpu_conv.accelerate(model, channels_last=True)
    assert not cpu_conv.has_channels_last(model) and "channels first" in caplog.text


@pytest.mark.parametrize("check", [lambda *_: False, _fails])
def test_loops_whose_results_disagree_are_left_out_with_a_notice(check, monkeypatch, caplog):
    monkeypatch.setattr(normalized_sum, "agrees", check)
    model = recognizer.build(LITE, 4)
    assert cpu_conv.accelerate(model, channels_last=True, threads=2)
    assert cpu_conv.has_channels_last(model) and "Compiled loops failed" in caplog.text
    assert not any(hasattr(norm, "loops") for norm in batchnorms(model))


def test_without_numba_training_says_what_it_lacks(monkeypatch, caplog):
    caplog.set_level("INFO")
    monkeypatch.setattr(cpu_conv, "find_spec", lambda name: None)
    model = recognizer.build(LITE, 4)
    assert cpu_conv.accelerate(model, channels_last=True, threads=2)
    assert cpu_conv.has_channels_last(model) and "pip install numba" in caplog.text
