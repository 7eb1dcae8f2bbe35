"""Layers of a transformer by compiled loops: outputs and gradients as with Paddle's operators."""

from __future__ import annotations

import math

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from paddlex_feat.models import compiled_kernels as kernels
from paddlex_feat.models import cpu_conv, recognizer, token_layers
from paddlex_feat.models.compiled_kernels import Loops
from paddlex_feat.models.spec import NetworkSpec

LOOPS = Loops(2)
TOWER = NetworkSpec(
    backbone="CLIP_vit", embedding_size=16, input_size=32, patch_size=8, width=48, depth=2, heads=3, neck="linear"
)


def test_gelu_and_its_gradient_are_the_exact_ones():
    x = np.concatenate([np.linspace(-14, 14, 20_001), [0, 1e-8, -1e-8, 60, -60]]).astype(np.float32)
    y, slope = np.empty_like(x), np.empty_like(x)
    kernels.gelu(x, y)
    kernels.gelu_gradient(x, np.ones_like(x), slope)
    below = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in x.tolist()])
    density = np.exp(-(x.astype(np.float64) ** 2) / 2) / math.sqrt(2 * math.pi)
    assert np.abs(y - x * below).max() < 2e-6 and np.abs(slope - (below + x * density)).max() < 2e-6


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
def test_softmax_is_that_of_float64(scale):
    x = np.random.default_rng(0).normal(0, 1, (5, 197)).astype(np.float32) * np.float32(scale)
    expected = np.exp(0.125 * (x.astype(np.float64) - x.max(axis=1, keepdims=True)))
    found = x.copy()
    kernels.softmax_rows(found, np.float32(0.125))
    assert np.abs(found - expected / expected.sum(axis=1, keepdims=True)).max() < 1e-6


def test_values_that_are_not_numbers_stay_so():
    x = np.array([[0, 1, np.nan, 2]], np.float32)
    y = np.empty(4, np.float32)
    kernels.gelu(x[0], y)
    kernels.softmax_rows(x, np.float32(1))
    assert np.isnan(y[2]) and np.isnan(x).all()


def gradients(model, images):
    model.train()
    features = model(images)
    (features * paddle.linspace(-1, 1, features.shape[1])).sum().backward()
    found = {name: p.grad.numpy() for name, p in model.named_parameters() if p.grad is not None}
    model.clear_gradients()
    return features.numpy(), found


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_a_tower_keeps_names_outputs_and_gradients(activation, pooling):
    spec = NetworkSpec(**{**vars(TOWER), "activation": activation, "pooling": pooling})
    native, fast = (recognizer.build(spec, 5) for _ in range(2))
    fast.set_state_dict(native.state_dict())
    names = list(native.state_dict())
    token_layers.use_loops(fast, LOOPS)
    assert list(fast.state_dict()) == names
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype("float32"))
    (expected, others), (found, own) = gradients(native, images), gradients(fast, images)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert own.keys() == others.keys()
    for name, gradient in own.items():
        assert np.abs(gradient - others[name]).max() <= 1e-4 * max(1e-3, np.abs(others[name]).max()), name


def test_the_number_of_threads_changes_no_bit():
    model = recognizer.build(TOWER, 5)
    images = paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype("float32"))
    found = []
    for threads in (1, 2):
        token_layers.use_loops(model, Loops(threads))
        found.append(gradients(model, images))
    assert np.array_equal(found[0][0], found[1][0])
    assert all(np.array_equal(gradient, found[1][1][name]) for name, gradient in found[0][1].items())


def test_training_takes_the_loops_unless_told_otherwise(monkeypatch):
    monkeypatch.setenv("FLAGS_use_mkldnn", "1")
    paddle.set_flags({"FLAGS_use_mkldnn": True})
    for threads in (2, None):
        model = recognizer.build(TOWER, 5)
        assert cpu_conv.accelerate(model, channels_last=True, threads=threads)
        assert (model.backbone.blocks[0].attn.qkv.loops is not None) is bool(threads)


def test_a_frozen_layer_is_left_to_paddle():
    model = recognizer.build(TOWER, 5)
    token_layers.use_loops(model, LOOPS)
    frozen = model.backbone.blocks[0]
    for parameter in frozen.parameters():
        parameter.stop_gradient = True
    images = paddle.to_tensor(np.zeros((2, 3, 32, 32), "float32"))
    _, found = gradients(model, images)
    assert not any(name.startswith("backbone.blocks.0.") for name in found)
    assert "backbone.blocks.1.attn.qkv.bias" in found and "backbone.pos_embed" in found
