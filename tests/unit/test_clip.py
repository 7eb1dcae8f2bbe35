"""The CLIP networks: contract, behaviour, export; the angular margin; backbones of other programs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from support.networks import SPECS

paddle = pytest.importorskip("paddle")

import paddle.nn.functional as F

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ConfigError, DependencyError
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.models import cpu_conv, recognizer, registry
from paddlex_feat.models.clip_vit import CLIPViT
from paddlex_feat.models.heads import ArcMargin, LinearNeck
from paddlex_feat.models.spec import NetworkSpec

BASE, LARGE = "PP-ShiTuV2_rec_CLIP_vit_base", "PP-ShiTuV2_rec_CLIP_vit_large"
TINY = replace(SPECS[BASE], input_size=32, patch_size=8, width=24, depth=2, heads=3)


def tiny(seed: int = 0, **changes):
    paddle.seed(seed)
    return recognizer.build(replace(TINY, **changes), 5)


def images(count: int = 3, size: int = 32):
    return paddle.to_tensor(np.random.default_rng(0).standard_normal((count, 3, size, size)).astype("float32"))


@pytest.mark.parametrize("name", [BASE, pytest.param(LARGE, marks=pytest.mark.slow)])
def test_tensors_are_exactly_those_of_the_contract_in_its_order(name):
    contract = json.loads((Path(__file__).parent / "contracts" / f"{name}.json").read_text())
    state = recognizer.build(SPECS[name], contract["num_classes"]).state_dict()
    own = {n: [list(t.shape), str(t.dtype).rpartition(".")[2]] for n, t in state.items()}
    assert own == contract["tensors"] and list(own) == list(contract["tensors"])


@pytest.mark.slow
@pytest.mark.parametrize("name", [BASE, pytest.param(LARGE, marks=pytest.mark.nightly)])
def test_one_real_training_step_changes_every_weight(name):
    paddle.seed(0)
    model = recognizer.build(SPECS[name], 4)
    model.train()
    before = {n: p.numpy() for n, p in model.named_parameters() if ".blocks." not in n or ".0." in n}
    optimizer = paddle.optimizer.Momentum(0.001, 0.9, model.parameters())
    labels = paddle.to_tensor([3, 1])
    loss = F.cross_entropy(model.logits(model(images(2, 224)), labels), labels)
    loss.backward()
    optimizer.step()
    assert np.isfinite(float(loss))
    parameters = dict(model.named_parameters())
    for n, value in before.items():
        assert not np.array_equal(parameters[n].numpy(), value) and np.isfinite(parameters[n].numpy()).all(), n


def softmax(x: np.ndarray) -> np.ndarray:
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def by_hand(model, x: np.ndarray) -> np.ndarray:
    """The tower in float64 NumPy, written from the papers, patch by patch and head by head."""
    w = {n: t.numpy().astype(np.float64) for n, t in model.backbone.state_dict().items()}

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * w[f"{name}.weight"] + w[f"{name}.bias"]

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"] + w[f"{name}.bias"]

    def gelu(x: np.ndarray) -> np.ndarray:
        from math import erf

        return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))

    kernel, step = w["patch_embed.proj.weight"], TINY.patch_size
    corners = [(i, j) for i in range(0, x.shape[2], step) for j in range(0, x.shape[3], step)]
    patches = [np.einsum("nchw,dchw->nd", x[:, :, i : i + step, j : j + step], kernel) for i, j in corners]
    x = np.stack([np.repeat(w["cls_token"][0], len(x), 0), *patches], 1) + w["pos_embed"]
    x = norm(x, "ln_pre")
    size = TINY.width // TINY.heads
    for i in range(TINY.depth):
        q, k, v = np.split(linear(norm(x, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv"), 3, axis=-1)
        rows = [slice(h * size, (h + 1) * size) for h in range(TINY.heads)]
        heads = [softmax(q[..., r] @ k[..., r].swapaxes(1, 2) / np.sqrt(size)) @ v[..., r] for r in rows]
        x = x + linear(np.concatenate(heads, -1), f"blocks.{i}.attn.proj")
        x = x + linear(gelu(linear(norm(x, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")), f"blocks.{i}.mlp.fc2")
    first = 0 if model.backbone.averages_class_token else 1
    return (norm(x[:, first:], "norm") @ w["proj"]).mean(1)


@pytest.mark.parametrize("class_token", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_the_tower_is_the_papers(class_token, training):
    model = tiny(class_token=class_token)
    for parameter in model.parameters():  # biases, scales and positions that matter
        parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
    model.train() if training else model.eval()
    x = images()
    expected = by_hand(model, x.numpy().astype(np.float64))
    assert np.abs(model.backbone(x).numpy() - expected).max() <= 1e-5 * np.abs(expected).max()
    assert np.abs(expected[0] - expected[1]).max() > 0.01


def test_a_batch_is_images_one_by_one():
    model = tiny()
    model.eval()
    whole, single = model(images()).numpy(), np.concatenate([model(images()[i : i + 1]).numpy() for i in range(3)])
    assert whole.shape == (3, 512) and np.abs(whole - single).max() <= 1e-6


def test_first_weights():
    model = tiny(width=192, heads=3)
    state = {n: t.numpy() for n, t in model.state_dict().items()}
    for name in ("pos_embed", "cls_token", "blocks.1.attn.qkv.weight", "blocks.0.mlp.fc2.weight"):
        assert state[f"backbone.{name}"].std() == pytest.approx(0.02, rel=0.15)
    assert state["backbone.proj"].std() == pytest.approx(192**-0.5, rel=0.05)
    for name in ("neck.fc.weight", "head.weight"):
        assert state[name].std() == pytest.approx((2 / sum(state[name].shape)) ** 0.5, rel=0.1)
    for name, value in state.items():
        if name.endswith("bias"):
            assert not value.any()
        if "norm" in name and name.endswith("weight"):
            assert (value == 1).all()


@pytest.mark.parametrize(
    ("changes", "key", "hint"),
    [
        ({"input_size": 36}, "Train.input_size", "32 or 40"),
        ({"input_size": 4}, "Train.input_size", "patch size: 8"),
        ({"heads": 5}, "Model.width", "heads"),
    ],
)
def test_sizes_that_do_not_fit_name_their_key(changes, key, hint):
    with pytest.raises(ConfigError, match=hint) as caught:
        tiny(**changes)
    assert caught.value.where == key


def test_positions_of_another_grid_are_resampled_and_the_class_position_kept():
    backbone = CLIPViT(40, 8, 6, 1, 2)  # 5 x 5
    row, column = np.mgrid[0:14, 0:14]
    old = np.zeros((1, 197, 6), np.float32)
    old[0, 0] = 7
    old[0, 1:] = np.stack([row, column, row + column, row * 0, row * 0 + 1, -row], -1).reshape(196, 6)
    state = {"b.pos_embed": old.copy(), "b.proj": np.ones(3)}
    assert backbone.adapt_state(state, "b.")
    new = state["b.pos_embed"]
    assert new.shape == (1, 26, 6) and new.dtype == np.float32 and list(state) == ["b.pos_embed", "b.proj"]
    assert np.array_equal(new[0, 0], old[0, 0])
    centres = (np.arange(5) + 0.5) * 14 / 5 - 0.5  # of the new cells, in old cells
    grid = new[0, 1:].reshape(5, 5, 6)
    inner = slice(1, 4)  # at the edge the outermost row is repeated
    assert np.allclose(grid[inner, :, 0], centres[inner, None], atol=0.1)
    assert np.allclose(grid[:, inner, 1], centres[None, inner], atol=0.1)
    assert np.allclose(grid[..., 2], grid[..., 0] + grid[..., 1], atol=1e-5)
    assert np.allclose(grid[..., 3], 0) and np.allclose(grid[..., 4], 1, atol=1e-6)


@pytest.mark.parametrize(
    "value",
    [
        np.zeros((1, 26, 6), np.float32),  # fits
        np.zeros((1, 24, 6), np.float32),  # not square
        np.zeros((1, 10, 8), np.float32),  # another width
        np.zeros((1, 1, 6), np.float32),  # the class token alone
        np.zeros((1, 0, 6), np.float32),
        np.zeros((10, 6), np.float32),
        np.zeros((1, 10, 6), np.int64),
        "text",
        None,
    ],
)
def test_what_is_no_grid_of_positions_is_left_alone(value):
    state = {"pos_embed": value}
    assert not CLIPViT(40, 8, 6, 1, 2).adapt_state(state)
    assert state["pos_embed"] is value and not CLIPViT(40, 8, 6, 1, 2).adapt_state({})


def test_half_precision_positions_are_resampled_too():
    state = {"pos_embed": np.ones((1, 10, 6), np.float16)}
    assert CLIPViT(40, 8, 6, 1, 2).adapt_state(state) and np.allclose(state["pos_embed"], 1)


@pytest.mark.parametrize("class_token", [False, True])
def test_the_exported_graph_agrees_at_any_batch(tmp_path, class_token):
    model = tiny(class_token=class_token)
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    exporter = Exporter(model, BASE, Preprocess(32))
    exporter.write(state, tmp_path)
    pixels = np.random.default_rng(1).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    for count in (1, 5):
        assert exporter.largest_difference(state, tmp_path, pixels[:count], "cpu") <= 1e-5
    other = {**state, "backbone.proj": np.flip(state["backbone.proj"], 1)}
    assert exporter.largest_difference(other, tmp_path, pixels, "cpu") > 1e-2


def test_the_onednn_convolution_of_the_patches_agrees():
    native, fast = tiny(), tiny()
    assert cpu_conv.accelerate(fast) and list(fast.state_dict()) == list(native.state_dict())
    for model in (native, fast):
        (model(images()) ** 2).mean().backward()
    a, b = (m.backbone.patch_embed.proj.weight.grad.numpy() for m in (native, fast))
    assert np.abs(a - b).max() <= 1e-4 * np.abs(a).max()


MARGIN, SCALE = 0.2, 30.0


def margin_loss(x: np.ndarray, w: np.ndarray, labels: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, float]:
    """ArcFace's logits in float64, by the formulas, and a loss that weighs every one of them."""
    cos = (x / np.linalg.norm(x, axis=1, keepdims=True)) @ (w / np.linalg.norm(w, axis=0, keepdims=True))
    phi = cos * np.cos(MARGIN) - np.sqrt(1 - cos**2 + 1e-6) * np.sin(MARGIN)
    phi = np.where(cos > -np.cos(MARGIN), phi, cos - MARGIN * np.sin(MARGIN))
    logits = SCALE * np.where(np.eye(w.shape[1], dtype=bool)[labels], phi, cos)
    return logits, float((logits * factors).sum())


def differences(f, x: np.ndarray, step: float = 1e-6) -> np.ndarray:
    """Central differences of a scalar function."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += step
        down[index] -= step
        gradient[index] = (f(up) - f(down)) / (2 * step)
    return gradient


def test_arc_margin_values_and_gradients_in_both_branches():
    rng = np.random.default_rng(0)
    x, w, labels = rng.standard_normal((6, 4)), rng.standard_normal((4, 3)), np.array([0, 1, 2, 0, 1, 2])
    x[3] = -2 * w[:, 0] + 0.05 * rng.standard_normal(4)  # turned away: cos < -cos m
    x[4] = 0.5 * w[:, 1] + 0.1 * rng.standard_normal(4)  # close to its class
    x, w = x.astype(np.float32).astype(np.float64), w.astype(np.float32).astype(np.float64)
    factors = rng.standard_normal((6, 3))
    head = ArcMargin(4, 3, MARGIN, SCALE)
    head.weight.set_value(w.astype(np.float32))
    features = paddle.to_tensor(x.astype(np.float32), stop_gradient=False)
    logits = head(features, paddle.to_tensor(labels))
    (logits * paddle.to_tensor(factors.astype(np.float32))).sum().backward()
    expected, _ = margin_loss(x, w, labels, factors)
    turned = expected[3, 0] / SCALE + MARGIN * np.sin(MARGIN)
    assert turned <= -np.cos(MARGIN)
    assert np.abs(logits.numpy() - expected).max() <= 1e-5 * SCALE
    by_x = differences(lambda v: margin_loss(v, w, labels, factors)[1], x)
    by_w = differences(lambda v: margin_loss(x, v, labels, factors)[1], w)
    assert np.abs(features.grad.numpy() - by_x).max() <= 1e-5 * np.abs(by_x).max()
    assert np.abs(head.weight.grad.numpy() - by_w).max() <= 1e-5 * np.abs(by_w).max()


def test_arc_margin_without_labels_or_in_evaluation_is_the_cosine():
    head = ArcMargin(4, 3)
    x = paddle.randn([5, 4])
    cos = F.normalize(x, axis=1) @ F.normalize(head.weight, axis=0)
    assert np.allclose(head(x).numpy(), cos.numpy(), atol=1e-6)
    head.eval()
    assert np.allclose(head(x, paddle.to_tensor([0, 1, 2, 0, 1])).numpy(), cos.numpy(), atol=1e-6)


def test_a_zero_feature_and_a_zero_class_give_finite_logits_and_gradients():
    head = ArcMargin(4, 3)
    head.weight.set_value(np.array([1, 0, 1], np.float32) * head.weight.numpy())
    x = paddle.to_tensor(np.array([[0, 0, 0, 0], [1, 2, 3, 4]], np.float32), stop_gradient=False)
    labels = paddle.to_tensor([0, 1])
    loss = F.cross_entropy(head(x, labels), labels)
    loss.backward()
    assert np.isfinite(float(loss)) and np.isfinite(head.weight.grad.numpy()).all()
    assert not x.grad[0].numpy().any() and np.isfinite(x.grad.numpy()).all()


def test_neck_and_head_by_specification():
    model = tiny(neck="bn", head="linear", embedding_size=16)
    assert list(model.neck.state_dict()) == ["feat_bn.weight", "feat_bn.bias", "feat_bn._mean", "feat_bn._variance"]
    labels = paddle.to_tensor([0, 1, 2])
    assert list(model.logits(model(images()), labels).shape) == [3, 5]
    model = tiny(arc_margin=0.5, arc_scale=64.0, embedding_size=16)
    assert isinstance(model.neck, LinearNeck) and (model.head.margin, model.head.scale) == (0.5, 64.0)
    features = model(images())
    assert float(model.logits(features).abs().max()) <= 1 < float(model.logits(features, labels).abs().max())


def test_without_paddleclas_its_backbones_are_a_missing_dependency(monkeypatch):
    monkeypatch.setitem(sys.modules, "paddleclas", None)  # as if it were not installed
    with pytest.raises(DependencyError, match=r"paddlex_feat\[paddleclas\].*--no-deps paddleclas"):
        recognizer.build(NetworkSpec(backbone="paddleclas/ResNet50"), 3)


class StubNet(paddle.nn.Layer):
    """A network as PaddleClas builds them: the last layer has class_num outputs."""

    def __init__(self, pretrained: bool, class_num: int, extra: int = 0):
        super().__init__()
        assert pretrained is False
        self.fc = paddle.nn.Linear(3, class_num + extra)

    def forward(self, x):
        return self.fc(x.mean([2, 3]))


class StubPair(StubNet):
    def forward(self, x):
        return [super().forward(x)] * 2


@pytest.fixture
def stub_paddleclas(monkeypatch):
    """Stands for the wheel, which cannot be installed beside this package's own dependencies."""
    module = ModuleType("paddleclas.ppcls.arch.backbone")
    module.ResNet50 = StubNet
    module.ResNet50_wide = lambda pretrained, class_num: StubNet(pretrained, class_num, extra=1)
    module.GoogLeNet = StubPair
    module.fixed = lambda pretrained, class_num: 1 / 0
    for name in ("paddleclas", "paddleclas.ppcls", "paddleclas.ppcls.arch"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)


def test_a_paddleclas_backbone_gives_its_classes_as_the_embedding(stub_paddleclas):
    model = recognizer.build(NetworkSpec(backbone="paddleclas/ResNet50", embedding_size=64, input_size=32), 3)
    assert model.backbone.training and next(iter(model.state_dict())) == "backbone.fc.weight"
    assert list(model(images()).shape) == [3, 64]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Resnet50", r"no network 'Resnet50'. Did you mean ResNet50"),
        ("zzz", "no network 'zzz'"),
        ("__name__", "no network"),
        ("ResNet50_wide", r"gives \[2, 513\] for 2 images, not \[2, 512\]"),
        ("GoogLeNet", "no single tensor"),
        ("fixed", "ZeroDivisionError"),
    ],
)
def test_a_paddleclas_backbone_that_does_not_serve_is_an_error(stub_paddleclas, name, message):
    with pytest.raises(ConfigError, match=message) as caught:
        recognizer.build(NetworkSpec(backbone=f"paddleclas/{name}", input_size=32), 3)
    assert caught.value.where == registry.BACKBONE_KEY == "Model.backbone"
