"""The comparison of an export with its weights, where products are rounded as GPUs round them: to TF32."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import pytest
from support.networks import SPECS

paddle = pytest.importorskip("paddle")

import paddle.nn.functional as F

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import WeightsError
from paddlex_feat.inference.export import exporter
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import recognizer
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.runtime.gpus import exact_products
from paddlex_feat.training.step import Step, TrainingNetwork

TOLERANCE = 1e-4  # the default of Export.tolerance
NAME = "PP-ShiTuV2_rec"
BASE, LARGE = SPECS[f"{NAME}_CLIP_vit_base"], SPECS[f"{NAME}_CLIP_vit_large"]


def narrow(spec: NetworkSpec) -> NetworkSpec:
    """The same architecture at 224 px with fewer channels and blocks."""
    return dataclasses.replace(spec, width=spec.width // 8, depth=3, heads=spec.heads // 8)


class Switches:
    """Stands in for Paddle's TF32 switches, on as they are by default on a GPU (cuBLAS's before Paddle 3.3)."""

    now: ClassVar[dict[str, bool]] = {}


def rounded(x: paddle.Tensor) -> paddle.Tensor:
    """float32 with 10 mantissa bits, to nearest (T. J. Dekker's splitting)."""
    large = x * (2.0**13 + 1)
    return large - (large - x)


@pytest.fixture
def tensor_cores(monkeypatch):
    """Dense convolutions and products of the dynamic graph, and of what is captured, round while their switch is on."""
    convolve, linear, matmul = F.conv._conv_nd, F.linear, paddle.matmul

    def of(library: str, *operands):
        return map(rounded, operands) if Switches.now[library] else operands

    @paddle.jit.not_to_static
    def tf32_convolve(x, weight, *rest, groups=1, **options):
        x, weight = of("cudnn", x, weight) if groups == 1 else (x, weight)  # depthwise ones are not on tensor cores
        return convolve(x, weight, *rest, groups=groups, **options)

    @paddle.jit.not_to_static
    def tf32_linear(x, weight, bias=None, name=None):
        return linear(*of("cublas", x, weight), bias)

    @paddle.jit.not_to_static
    def tf32_matmul(x, y, transpose_x=False, transpose_y=False, name=None):
        return matmul(*of("cublas", x, y), transpose_x, transpose_y)

    monkeypatch.setattr(F.conv, "_conv_nd", tf32_convolve)
    monkeypatch.setattr(F, "linear", tf32_linear)
    monkeypatch.setattr(paddle, "matmul", tf32_matmul)
    monkeypatch.setattr(Switches, "now", {"cudnn": True, "cublas": True})
    for library in ("cudnn", "cublas"):
        monkeypatch.setattr(paddle.base.core, f"get_{library}_switch", lambda name=library: Switches.now[name])
        monkeypatch.setattr(
            paddle.base.core, f"set_{library}_switch", lambda on, name=library: Switches.now.update({name: on})
        )
    monkeypatch.setattr(paddle, "is_compiled_with_cuda", lambda: True)
    monkeypatch.setattr(paddle.base.core, "get_cuda_device_count", lambda: 0, raising=False)


class EngineOfGpu:
    """Paddle Inference on the graph as exported, or on that with rounded operands while TF32 is on."""

    def __init__(self, folder: Path, *rest, **options):
        self._of = lambda form: FeatureExtractor(folder / form, *rest, **options)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        return self._of("tf32" if any(Switches.now.values()) else ".")(images)


def varied_images(count: int, size: int) -> np.ndarray:
    """Coarse and fine patterns of any colours."""
    rng = np.random.default_rng(0)
    cells = [rng.integers(0, 256, (k, k, 3), dtype=np.uint8) for k in rng.integers(2, 60, count)]
    return np.stack([cv2.resize(c, (size, size), interpolation=i % 2) for i, c in enumerate(cells)])


def calibrated(network: recognizer.Recognizer, images: np.ndarray) -> recognizer.Recognizer:
    """The network with the statistics of these images in every BatchNorm."""
    for layer in network.sublayers():
        if isinstance(layer, paddle.nn.layer.norm._BatchNormBase):
            layer._momentum = 0.0
    network.train()
    with paddle.no_grad(), exact_products():
        network(paddle.to_tensor(Preprocess(images.shape[1]).normalise(images)))
    network.eval()
    return network


def random_network(spec: NetworkSpec, images: np.ndarray) -> recognizer.Recognizer:
    """Random weights of the size of trained ones."""
    paddle.seed(3)
    network = recognizer.build(spec, None)
    for layer in network.sublayers():
        if isinstance(layer, paddle.nn.Linear):
            layer.weight.set_value(paddle.randn(layer.weight.shape) * layer.weight.shape[0] ** -0.5)
    return calibrated(network, images) if spec.neck == "bn" else network


def trained_network(spec: NetworkSpec, images: np.ndarray, steps: int, rate: float) -> recognizer.Recognizer:
    """Weights after some steps with the losses of the recipes, four images a class and step."""
    paddle.seed(3)
    network = recognizer.build(spec, 4)
    optimizer = paddle.optimizer.Momentum(rate, 0.9, network.parameters())
    criterion = recipe_loss()
    step = Step(TrainingNetwork(network, Preprocess(images.shape[1])), criterion, optimizer)
    labels = np.arange(8) // 4
    network.train()
    losses = [float(step([(images[i % 2 * 8 :][:8], labels + i % 2 * 2)])["loss"]) for i in range(steps)]
    assert losses[-1] < losses[0]  # of the same batch
    state = network.state_dict()
    network = recognizer.build(spec, None)
    network.set_state_dict({name: tensor for name, tensor in state.items() if not name.startswith("head")})
    return calibrated(network, images) if spec.neck == "bn" else network


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "changed"),
    [
        pytest.param(SPECS[NAME], "backbone.stages.1.0.pw_conv.conv.weight", id="PP-ShiTuV2_rec"),
        pytest.param(narrow(BASE), "backbone.blocks.1.attn.qkv.weight", id="base, narrow"),
        pytest.param(narrow(LARGE), "backbone.blocks.1.mlp.fc1.weight", id="large, narrow"),
        pytest.param(BASE, "backbone.blocks.5.attn.qkv.weight", id="base", marks=pytest.mark.nightly),
    ],
)
def test_an_export_agrees_where_products_are_tf32_and_a_weight_off_by_a_hundredth_does_not(
    spec, changed, tmp_path, tensor_cores, monkeypatch
):
    images = varied_images(16, 224)
    difference = require_comparison(random_network(spec, images), spec, changed, images, tmp_path, monkeypatch)

    if spec.neck == "bn":  # what the switches are for; CLIP has no branches to fuse
        monkeypatch.setattr(exporter, "exact_products", contextlib.nullcontext)
        assert difference() > 5 * TOLERANCE


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "changed", "steps", "rate"),
    [
        pytest.param(SPECS[NAME], "backbone.stages.1.0.pw_conv.conv.weight", 9, 0.005, id="PP-ShiTuV2_rec"),
        pytest.param(BASE, "backbone.blocks.5.attn.qkv.weight", 3, 0.0003, id="base"),
        pytest.param(LARGE, "backbone.blocks.5.mlp.fc1.weight", 3, 0.0003, id="large"),
    ],
)
def test_an_export_of_trained_weights_agrees_likewise(spec, changed, steps, rate, tmp_path, tensor_cores, monkeypatch):
    images = varied_images(16, 224)
    Switches.now.update(cudnn=False, cublas=False)  # the training rounds nothing
    network = trained_network(spec, images, steps, rate)
    Switches.now.update(cudnn=True, cublas=True)
    require_comparison(network, spec, changed, images, tmp_path, monkeypatch)


def require_comparison(network, spec, changed, images, folder, monkeypatch) -> Callable[[], float]:
    """The weights agree with what they were exported to, and do not with `changed` off by 1 %.

    Returns what compares the right weights again.
    """
    images = images[: 2 if spec.neck == "bn" else 1]
    preprocess = Preprocess(images.shape[1])
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    with exact_products():
        exporter.Exporter(network, NAME, preprocess).write(state, folder)
    (folder / "tf32").mkdir()
    on_gpu = exporter.Exporter(recognizer.build(spec, None), NAME, preprocess)
    on_gpu.write(state, folder / "tf32")
    monkeypatch.setattr(exporter, "FeatureExtractor", EngineOfGpu)

    difference = on_gpu.largest_difference(state, folder, images, "cpu")
    exporter.require_agreement(difference, TOLERANCE, folder)
    assert Switches.now == {"cudnn": True, "cublas": True}  # as it was
    other = {**state, changed: state[changed] * np.float32(1.01)}
    with pytest.raises(WeightsError, match="differs"):
        exporter.require_agreement(on_gpu.largest_difference(other, folder, images, "cpu"), TOLERANCE, folder)
    return lambda: on_gpu.largest_difference(state, folder, images, "cpu")
