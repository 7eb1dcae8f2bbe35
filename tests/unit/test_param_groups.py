"""Parameter groups, frozen statistics, the gradient's norm: what one step of each optimizer does to each parameter."""

from __future__ import annotations

import re

import numpy as np
import pytest
from support.networks import TINY_CLIP

paddle = pytest.importorskip("paddle")

from paddlex_feat.config.train_schema import TrainSection
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ConfigError
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import cpu_conv, recognizer
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.modes import train_build
from paddlex_feat.training.freeze import batchnorms
from paddlex_feat.training.optimizers import OPTIMIZERS, OptimizerContext
from paddlex_feat.training.param_groups import Groups, parameter_depths, set_groups
from paddlex_feat.training.step import Step, TrainingNetwork

RATE, DECAY = 0.01, 0.1
LITE = NetworkSpec(backbone="EfficientNet_Lite0", embedding_size=1280, neck="linear")
GROUPS = Groups(backbone=0.5, neck=3.0, head=10.0, layer_decay=0.7, decay_vectors=False)


def optimizer_of(name: str, parameters, decay: float = DECAY, multi_tensor: bool = False, clip=None):
    spec = OPTIMIZERS.get(name)
    return spec.build(parameters, OptimizerContext(RATE, decay, 0.9, clip, multi_tensor), spec.params())


def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, 32, 32, 3), dtype=np.uint8), np.arange(6) % 3


def factor_of(name: str, depth: dict[str, int]) -> float:
    """The expected factor on the rate of a parameter of the tiny CLIP tower of two depths of blocks."""
    part = name.partition(".")[0]
    factor = {"backbone": 0.5, "neck": 3.0, "head": 10.0}[part]
    return factor * 0.7 ** (max(depth.values()) - depth[name.partition(".")[2]]) if part == "backbone" else factor


@pytest.mark.parametrize(("name", "multi_tensor"), [("momentum", False), ("momentum", True), ("adamw", False)], ids=str)
def test_one_step_changes_each_parameter_by_its_own_rate_and_decay(name, multi_tensor):
    paddle.seed(3)
    model, criterion = recognizer.build(TINY_CLIP, 3), recipe_loss(0, 1.0, 0.0)
    set_groups(model, criterion, GROUPS)
    network = TrainingNetwork(model, Preprocess(32))
    before = {n: p.numpy().astype(np.float64) for n, p in model.named_parameters()}
    images, labels = (paddle.to_tensor(part) for part in batch())
    criterion(*network(images, labels), labels)["loss"].backward()
    gradients = {n: p.grad.numpy().astype(np.float64) for n, p in model.named_parameters()}
    optimizer = optimizer_of(name, model.parameters(), multi_tensor=multi_tensor)
    optimizer.step()
    depth = parameter_depths(model.backbone)
    for own, parameter in model.named_parameters():
        rate, g, w = RATE * factor_of(own, depth), gradients[own], before[own]
        decay = DECAY if w.ndim > 1 else 0.0
        # The first step: momentum starts at 0, and Adam's corrected means are the gradient and its square.
        change = g + decay * w if name == "momentum" else g / (np.abs(g) + 1e-8) + decay * w
        assert np.allclose(parameter.numpy(), w - rate * change, atol=2e-6 * np.abs(rate) + 1e-7, rtol=1e-5), own


def test_the_defaults_change_nothing():
    model = recognizer.build(NetworkSpec(), 3)
    before = {n: (p.optimize_attr["learning_rate"], p.regularizer) for n, p in model.named_parameters()}
    set_groups(model, recipe_loss(), train_build._groups(TrainSection()))
    assert before == {n: (p.optimize_attr["learning_rate"], p.regularizer) for n, p in model.named_parameters()}


def test_depths_follow_the_computation():
    lite = parameter_depths(recognizer.build(LITE, None).backbone)
    assert len(set(lite.values())) == max(lite.values()) + 1 == 18  # stem, 16 blocks, last convolution
    assert lite["stem.conv.weight"] == 0 and lite["blocks.3.project.bn.bias"] == 4 and lite["last_conv.bn.weight"] == 17
    lcnet = parameter_depths(recognizer.build(NetworkSpec(), None).backbone)
    order = [
        "stem.0.conv.weight",
        "stem.1.dw_conv.conv.weight",
        "stages.0.0.pw_conv.bn.bias",
        "stages.3.1.dw_conv.bias",
    ]
    assert [lcnet[name] for name in order] == [0, 1, 2, 13] and lcnet["last_conv.weight"] == 14
    clip = parameter_depths(recognizer.build(TINY_CLIP, None).backbone)
    assert {clip[n] for n in ("pos_embed", "cls_token", "patch_embed.proj.weight", "ln_pre.bias")} == {0}
    assert all(clip[n] == int(m[1]) + 1 for n in clip if (m := re.match(r"blocks\.(\d+)\.", n)))
    assert clip["norm.weight"] == clip["proj"] == max(clip.values())


def test_frozen_statistics_stay_and_the_scales_are_trained():
    """Against the formula: in evaluation mode y = (x - mean) / sqrt(var + eps) * scale + shift, all but x constant."""
    paddle.seed(0)
    model = recognizer.build(LITE, None)
    (layer,) = [sub for name, sub in model.named_sublayers() if name == "backbone.stem.bn"]
    rng = np.random.default_rng(1)
    layer._mean.set_value(rng.normal(size=32).astype("float32"))
    layer._variance.set_value(rng.uniform(0.5, 2, 32).astype("float32"))
    x, w = (rng.normal(size=(2, 32, 4, 4)).astype("float32") for _ in range(2))
    model.train()
    layer.eval()
    tensor = paddle.to_tensor(x, stop_gradient=False)
    (layer(tensor) * paddle.to_tensor(w)).sum().backward()
    inverse = 1 / np.sqrt(layer._variance.numpy() + 1e-3)
    normed = (x - layer._mean.numpy().reshape(1, -1, 1, 1)) * inverse.reshape(1, -1, 1, 1)
    assert np.allclose(layer.weight.grad.numpy(), (w * normed).sum((0, 2, 3)), atol=1e-4)
    assert np.allclose(layer.bias.grad.numpy(), w.sum((0, 2, 3)), atol=1e-4)
    assert np.allclose(tensor.grad.numpy(), w * (inverse * layer.weight.numpy()).reshape(1, -1, 1, 1), atol=1e-5)


def test_onednn_convolutions_agree_beside_frozen_statistics():
    images = paddle.to_tensor(np.random.default_rng(2).normal(size=(4, 3, 32, 32)).astype("float32"))
    gradients = []
    for fast in (False, True):
        paddle.seed(0)
        backbone = recognizer.build(LITE, None).backbone
        rng = np.random.default_rng(3)
        for layer in batchnorms(backbone):
            layer._mean.set_value(rng.normal(0, 0.1, layer._mean.shape).astype("float32"))
            layer._variance.set_value(rng.uniform(0.5, 2, layer._variance.shape).astype("float32"))
        if fast:
            paddle.set_flags({"FLAGS_use_mkldnn": True})
            assert cpu_conv.accelerate(backbone)
        backbone.train()
        for layer in batchnorms(backbone):
            layer.eval()
        (backbone(images) * paddle.arange(1280, dtype="float32")).mean().backward()
        gradients.append({name: p.grad.numpy() for name, p in backbone.named_parameters() if not p.stop_gradient})
    for name, native in gradients[0].items():
        assert np.abs(gradients[1][name] - native).max() <= 1e-4 * np.abs(native).max() + 1e-7, name


def test_statistics_to_freeze_are_those_of_the_backbone_and_of_weights():
    model = recognizer.build(NetworkSpec(), 3)
    found = train_build._with_frozen_statistics(TrainSection(bn_frozen=True), model, None)
    assert len(found) == len(batchnorms(model)) - 1 and model.neck.feat_bn not in found
    with pytest.raises(ConfigError) as caught:
        train_build._with_frozen_statistics(TrainSection(bn_frozen=True, pretrain_weight_path=None), model, None)
    assert caught.value.code == "bn-frozen-from-scratch"


def test_the_gradients_norm_is_that_before_clipping():
    def norm(clip) -> float:
        paddle.seed(1)
        model = recognizer.build(TINY_CLIP, 3)
        step = Step(
            TrainingNetwork(model, Preprocess(32)),
            recipe_loss(0, 1.0, 0.0),
            optimizer_of("momentum", model.parameters(), clip=clip),
        )
        step([batch()])
        assert step.grad_norm is None
        step([batch()], measure=True)
        return float(step.grad_norm)

    paddle.seed(1)
    model, criterion = recognizer.build(TINY_CLIP, 3), recipe_loss(0, 1.0, 0.0)
    step = Step(TrainingNetwork(model, Preprocess(32)), criterion, optimizer_of("momentum", model.parameters()))
    step([batch()])
    images, labels = (paddle.to_tensor(part) for part in batch())
    criterion(*TrainingNetwork(model, Preprocess(32))(images, labels), labels)["loss"].backward()
    squares = [float((p.grad.numpy().astype(np.float64) ** 2).sum()) for p in model.parameters() if p.grad is not None]
    assert norm(None) == pytest.approx(np.sqrt(sum(squares)), rel=1e-5)
    assert norm(paddle.nn.ClipGradByGlobalNorm(1e6)) == pytest.approx(norm(None), rel=1e-6)
    assert norm(paddle.nn.ClipGradByGlobalNorm(1e-9)) > 1  # of the loss, though the steps hardly change anything
