"""Training with channels last on a CPU: outputs, gradients and names as with Paddle's native operators."""

from __future__ import annotations

import numpy as np
import pytest
from support.networks import SPECS

paddle = pytest.importorskip("paddle")

from paddle import nn

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import channels_last, cpu_conv, depthwise, recognizer
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.training.freeze import batchnorms, freeze
from paddlex_feat.training.step import Step, TrainingNetwork

LITE = NetworkSpec(backbone="EfficientNet_Lite0", embedding_size=1280, neck="linear")
NETWORKS = {"PP-ShiTuV2_rec": SPECS["PP-ShiTuV2_rec"], "EfficientNet_Lite0_rec": LITE}


@pytest.fixture(autouse=True)
def onednn():
    """As a training on a CPU sets it; tests/conftest.py takes it back."""
    paddle.set_flags({"FLAGS_use_mkldnn": True})


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


@pytest.mark.parametrize("height, width, kernel", [(7, 7, 5), (4, 9, 5), (2, 2, 5), (5, 6, 7)])
def test_gradients_of_small_depthwise_convolutions_are_those_of_paddle(height, width, kernel):
    native = nn.Conv2D(8, 8, kernel, padding=kernel // 2, groups=8, bias_attr=False)
    assert depthwise.takes(native)
    x, weights = tensor(3, 8, height, width), tensor(3, 8, height, width).detach()
    y = native(x)
    (y * weights).sum().backward()

    def program(maps, kernels):
        maps = maps.transpose([0, 3, 1, 2])
        return nn.functional.conv2d(maps, kernels, None, 1, kernel // 2, 1, 8).transpose([0, 2, 3, 1])

    last = x.detach().transpose([0, 2, 3, 1])
    last.stop_gradient = False
    own = native.weight.clone().detach()
    own.stop_gradient = False
    found = depthwise.convolve(last, own, program)
    (found * weights.transpose([0, 2, 3, 1])).sum().backward()
    assert_same(found, y.transpose([0, 2, 3, 1]))
    assert_same(last.grad, x.grad.transpose([0, 2, 3, 1]))
    assert_same(own.grad, native.weight.grad)


@pytest.mark.parametrize("frozen", ["maps", "weight"])
def test_a_depthwise_convolution_computes_the_wanted_gradient_alone(frozen):
    maps, weight = tensor(2, 6, 6, 4), tensor(4, 1, 5, 5)
    (maps if frozen == "maps" else weight).stop_gradient = True
    calls = []

    def program(x, kernels):
        calls.append(1)
        y = nn.functional.conv2d(x.transpose([0, 3, 1, 2]), kernels, None, 1, 2, 1, 4)
        return y.transpose([0, 2, 3, 1])

    depthwise.convolve(maps, weight, program).sum().backward()
    assert (maps.grad is None, weight.grad is None) == (frozen == "maps", frozen == "weight")
    assert len(calls) == (1 if frozen == "maps" else 2)


@pytest.mark.parametrize(
    "settings, taken",
    [
        ({"kernel_size": 5, "padding": 2, "groups": 8}, True),
        ({"kernel_size": 5, "padding": [2, 2, 2, 2], "groups": 8}, True),
        ({"kernel_size": 3, "padding": 1, "groups": 8}, False),
        ({"kernel_size": 5, "padding": 2, "groups": 8, "stride": 2}, False),
        ({"kernel_size": 5, "padding": [1, 2, 1, 2], "groups": 8}, False),
        ({"kernel_size": 5, "padding": 2}, False),
    ],
)
def test_only_large_depthwise_kernels_that_keep_the_size_are_taken(settings, taken):
    assert depthwise.takes(nn.Conv2D(8, 8, bias_attr=False, **settings)) is taken


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
def test_networks_keep_names_outputs_and_gradients(name, statistics):
    paddle.seed(1)
    networks = [recognizer.build(NETWORKS[name], 5) for _ in range(2)]
    native, fast = networks
    fast.set_state_dict(native.state_dict())
    names = list(native.state_dict())
    assert cpu_conv.accelerate(fast, channels_last=True)
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
    assert cpu_conv.accelerate(model, channels_last=True)
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


def _fails():
    raise ValueError("no such program")


@pytest.mark.parametrize("check", [lambda: False, _fails])
def test_a_processor_whose_results_disagree_trains_with_channels_first_and_says_so(check, monkeypatch, caplog):
    monkeypatch.setattr(cpu_conv, "_all_agree_channels_last", check)
    model = recognizer.build(LITE, 4)
    assert cpu_conv.accelerate(model, channels_last=True)
    assert not cpu_conv.has_channels_last(model) and "channels first" in caplog.text
