"""The network against its contract, its fused form, its weight files and the oneDNN convolutions."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from support.networks import SPECS

paddle = pytest.importorskip("paddle")

from paddlex_feat.errors import ConfigError, WeightsError
from paddlex_feat.models import cpu_conv, recognizer, weights
from paddlex_feat.models.spec import NetworkSpec

NAME = "PP-ShiTuV2_rec"
CONTRACT = json.loads((Path(__file__).parent / "contracts" / f"{NAME}.json").read_text())


@pytest.fixture(scope="module")
def images():
    return paddle.to_tensor(np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype("float32"))


def trained(num_classes: int = 5, seed: int = 0):
    """A network whose BatchNorm statistics are not the initial ones."""
    paddle.seed(seed)
    model = recognizer.build(SPECS[NAME], num_classes)
    model.train()
    for step in range(3):
        model(paddle.to_tensor(np.random.default_rng(step).standard_normal((8, 3, 48, 48)).astype("float32")))
    model.eval()
    return model


def test_tensors_are_exactly_those_of_the_contract():
    state = recognizer.build(SPECS[NAME], CONTRACT["num_classes"]).state_dict()
    own = {name: [list(t.shape), str(t.dtype).rpartition(".")[2]] for name, t in state.items()}
    assert own == CONTRACT["tensors"]


def test_an_unknown_backbone_lists_the_known_and_the_near():
    with pytest.raises(ConfigError, match=r"Did you mean PPLCNetV2_base_ShiTu\?(.|\n)*CLIP_vit") as caught:
        recognizer.build(NetworkSpec(backbone="pplcnetv2_base_shitu"), 3)
    assert caught.value.where == "Model.backbone"


def test_the_fused_kernel_asks_for_no_gradient():
    """DataParallel waits for the gradient of every parameter that wants one."""
    model = recognizer.build(SPECS[NAME], 3)
    model.train()
    model.logits(model(paddle.rand([4, 3, 32, 32]))).sum().backward()
    without = {name for name, p in model.named_parameters() if not p.stop_gradient and p.grad is None}
    frozen = {n for n, p in model.named_parameters() if p.stop_gradient and not n.endswith(("_mean", "_variance"))}
    assert not without
    fused_kernels = {name for name in model.state_dict() if ".dw_conv.weight" in name or ".dw_conv.bias" in name}
    assert frozen == fused_kernels and len(fused_kernels) == 16


def test_the_last_stage_keeps_its_resolution():
    backbone = recognizer.build(SPECS[NAME], 2).backbone
    backbone.eval()
    x = backbone.stem(paddle.zeros([1, 3, 224, 224]))
    sizes = []
    for stage in backbone.stages:
        x = stage(x)
        sizes.append(x.shape[-1])
    assert sizes == [56, 28, 14, 14]


def test_fusing_the_branches_keeps_the_features(images):
    model = trained()
    twin = recognizer.build(SPECS[NAME], 5)
    twin.set_inference_weights(model.state_dict())
    with paddle.no_grad():
        plain, fused = model(images).numpy(), twin(images).numpy()
    assert twin.backbone.stages[3][1].fused and not model.backbone.stages[3][1].fused
    assert np.abs(plain - fused).max() <= 1e-5 * max(1, np.abs(plain).max())


def test_dropout_scales_in_evaluation_and_only_zeroes_in_training():
    dropout = recognizer.build(SPECS[NAME], 2).backbone.dropout
    ones = paddle.ones([40, 100])
    dropout.eval()
    assert np.allclose(dropout(ones).numpy(), 0.8)
    dropout.train()
    values = dropout(ones).numpy()
    assert set(values.ravel().tolist()) == {0.0, 1.0} and 0.77 < values.mean() < 0.83


def test_the_necks_shift_stays_0_and_batchnorm_is_not_decayed():
    model = recognizer.build(SPECS[NAME], 3)
    model.train()
    optimizer = paddle.optimizer.Momentum(0.5, 0.9, model.parameters(), weight_decay=0.1)
    bn = model.backbone.stem[0].bn
    bn.weight.stop_gradient = False
    before = {"scale": bn.weight.numpy().copy(), "head": model.head.fc.weight.numpy().copy()}
    (model(paddle.rand([4, 3, 32, 32])).sum() * 0 + model.logits(paddle.rand([4, 512])).sum() * 0).backward()
    optimizer.step()
    assert np.array_equal(model.neck.feat_bn.bias.numpy(), np.zeros(512, "float32"))
    assert np.array_equal(bn.weight.numpy(), before["scale"])  # zero gradient, no decay
    assert np.allclose(model.head.fc.weight.numpy(), before["head"] * (1 - 0.5 * 0.1), rtol=1e-5)  # decayed


def test_the_necks_scale_is_trained_and_its_shift_is_not():
    model = recognizer.build(SPECS[NAME], 3)
    model.train()
    optimizer = paddle.optimizer.Momentum(0.5, 0.9, model.parameters())
    for _ in range(2):
        (model(paddle.rand([4, 3, 32, 32])) * paddle.rand([4, 512])).sum().backward()
        optimizer.step()
    assert not model.neck.feat_bn.bias.numpy().any()
    assert (model.neck.feat_bn.weight.numpy() != 1).mean() > 0.9


def test_weights_come_back_as_they_were_written(tmp_path):
    model, other = trained(seed=0), recognizer.build(SPECS[NAME], 5)
    weights.write(tmp_path / "a.pdparams", model.state_dict())
    report = weights.load(other, tmp_path / "a.pdparams")
    assert len(report.loaded) == len(model.state_dict()) and not report.unused
    for name, tensor in model.state_dict().items():
        assert np.array_equal(tensor.numpy(), other.state_dict()[name].numpy())


def test_the_same_state_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        weights.write(tmp_path / name, trained(seed=3).state_dict())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_paddle_reads_our_files_and_we_read_paddles(tmp_path):
    model = trained()
    weights.write(tmp_path / "ours.pdparams", model.state_dict())
    paddle.save(model.state_dict(), str(tmp_path / "paddles.pdparams"))
    paddle.save({"a": {"nested": model.head.fc.weight}, "b": 3}, str(tmp_path / "nested.pdparams"))
    theirs, ours = paddle.load(str(tmp_path / "ours.pdparams")), weights.read(tmp_path / "paddles.pdparams")
    for name, tensor in model.state_dict().items():
        assert np.array_equal(theirs[name].numpy(), tensor.numpy()) and np.array_equal(ours[name], tensor.numpy())
    nested = weights.read(tmp_path / "nested.pdparams")
    assert np.array_equal(nested["a"]["nested"], model.head.fc.weight.numpy()) and nested["b"] == 3


def test_missing_and_misshapen_tensors_are_listed(tmp_path):
    state = {k: v.numpy() for k, v in trained().state_dict().items()}
    del state["backbone.last_conv.bias"]
    state["neck.feat_bn.weight"] = np.zeros(7, "float32")
    weights.write(tmp_path / "a.pdparams", state)
    with pytest.raises(WeightsError) as caught:
        weights.load(recognizer.build(SPECS[NAME], 5), tmp_path / "a.pdparams")
    text = str(caught.value)
    assert "2 of" in text and "backbone.last_conv.bias is missing" in text and "[7], the network has [512]" in text


def test_another_class_count_is_an_error_except_at_the_start_of_training(tmp_path):
    weights.write(tmp_path / "a.pdparams", trained(5).state_dict())
    with pytest.raises(WeightsError, match=r"head\.fc\.weight"):
        weights.load(recognizer.build(SPECS[NAME], 9), tmp_path / "a.pdparams")
    report = weights.load(recognizer.build(SPECS[NAME], 9), tmp_path / "a.pdparams", head="optional")
    assert report.reinitialised == ["head.fc.weight"] and "newly initialised: head.fc.weight" in str(report)
    report = weights.load(recognizer.build(SPECS[NAME], 1), tmp_path / "a.pdparams", head="ignored")
    assert not report.reinitialised and not report.unused and len(report.loaded) == len(CONTRACT["tensors"]) - 1


@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_a_backbone_alone_starts_a_training_and_nothing_else(tmp_path, prefix):
    """With or without the name of the whole network in front; neck and head are made anew, and it is said."""
    model = trained()
    state = {prefix + n: t for n, t in model.backbone.state_dict().items()}
    weights.write(tmp_path / "b.pdparams", {**state, "something.else": paddle.zeros([2])})
    other = recognizer.build(SPECS[NAME], 9)
    report = weights.load(other, tmp_path / "b.pdparams", head="optional")
    assert report.reinitialised == [n for n in other.state_dict() if not n.startswith("backbone.")]
    assert len(report.unused) == 1 and "newly initialised: neck.feat_bn.weight" in str(report)
    for name, tensor in model.backbone.state_dict().items():
        assert np.array_equal(other.backbone.state_dict()[name].numpy(), tensor.numpy()), name
    with pytest.raises(WeightsError, match=r"neck\.feat_bn\.weight is missing"):
        weights.load(other, tmp_path / "b.pdparams", head="ignored")
    weights.write(tmp_path / "b.pdparams", dict(list(state.items())[5:]))
    with pytest.raises(WeightsError, match=r"backbone\..* is missing"):
        weights.load(other, tmp_path / "b.pdparams", head="optional")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(512, "int64"), "type int64"),
        (np.full(512, "a"), "type <U1"),
        (np.full(512, np.nan, "float32"), "not finite"),
        ("text", "is a str, the network has"),
    ],
)
def test_tensors_of_another_kind_are_named(tmp_path, value, message):
    state = {k: v.numpy() for k, v in trained().state_dict().items()}
    weights.write(tmp_path / "a.pdparams", {**state, "neck.feat_bn.weight": value, 3: value})
    with pytest.raises(WeightsError, match=message):
        weights.load(recognizer.build(SPECS[NAME], 5), tmp_path / "a.pdparams")


def test_half_precision_weights_are_widened(tmp_path):
    model = trained()
    weights.write(tmp_path / "a.pdparams", {k: v.numpy().astype("float16") for k, v in model.state_dict().items()})
    other = recognizer.build(SPECS[NAME], 5)
    weights.load(other, tmp_path / "a.pdparams")
    assert np.allclose(other.head.fc.weight.numpy(), model.head.fc.weight.numpy(), rtol=1e-3, atol=1e-6)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch /tmp/paddlex_feat_was_here",)


@pytest.mark.parametrize("content", [Hostile(), {"w": Hostile()}, {"w": getattr}, {"w": np.vectorize(abs)}])
def test_a_weight_file_that_would_run_code_is_refused_with_the_name(tmp_path, content):
    (tmp_path / "evil.pdparams").write_bytes(pickle.dumps(content))
    with pytest.raises(WeightsError, match=r"asks for .*(system|getattr|vectorize)"):
        weights.read(tmp_path / "evil.pdparams")
    assert not Path("/tmp/paddlex_feat_was_here").exists()


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"not a pickle", pickle.dumps([1, 2])])
def test_a_damaged_weight_file_is_an_error(tmp_path, data):
    (tmp_path / "bad.pdparams").write_bytes(data)
    with pytest.raises(WeightsError, match=r"bad\.pdparams"):
        weights.read(tmp_path / "bad.pdparams")


def test_onednn_convolutions_keep_names_outputs_and_gradients(images):
    paddle.seed(1)
    native = recognizer.build(SPECS[NAME], 5)
    fast = recognizer.build(SPECS[NAME], 5)
    fast.set_state_dict(native.state_dict())
    names = list(native.state_dict())
    paddle.set_flags({"FLAGS_use_mkldnn": True})
    assert cpu_conv.accelerate(fast)
    assert list(fast.state_dict()) == names and [n for n, _ in fast.named_parameters()] == [
        n for n, _ in native.named_parameters()
    ]
    for model in (native, fast):
        model.train()
        paddle.seed(2)  # the same dropout
        (model(images) ** 2).mean().backward()
    # A value that rounding moves across the kink of a ReLU changes gradients: their direction is compared.
    one, other = (
        np.concatenate([p.grad.numpy().ravel() for p in model.parameters() if p.grad is not None])
        for model in (native, fast)
    )
    assert one @ other > 0.999 * np.linalg.norm(one) * np.linalg.norm(other)


def test_onednn_convolutions_are_left_out_where_they_would_not_fit(caplog):
    """61 MB of inputs and outputs an image at 224 px, held four and a half times over."""
    model = recognizer.build(SPECS[NAME], 5)
    before = {n: t.numpy().copy() for n, t in model.state_dict().items()}
    needed = cpu_conv.memory_needed(model, 128, 224)
    assert 34e9 < needed < 36e9 and needed == 128 * cpu_conv.memory_needed(model, 1, 224)
    assert model.training and all(np.array_equal(before[n], t.numpy()) for n, t in model.state_dict().items())
    with caplog.at_level("WARNING", "paddlex_feat"):
        assert not cpu_conv.accelerate(model, 128, 224, memory=20 * 10**9)
    assert "about 35 GB" in caplog.text and "forward" not in vars(model.backbone.last_conv)
    assert cpu_conv.memory_needed(model, 128, 224, channels_last=True) < 18e9  # 17.9e9 were measured


def test_onednn_convolutions_are_left_out_without_the_flag(monkeypatch):
    monkeypatch.setenv("FLAGS_use_mkldnn", "0")
    assert not cpu_conv.accelerate(recognizer.build(SPECS[NAME], 2))


def test_a_network_for_features_alone_has_no_head_and_takes_the_weights_of_one_that_has():
    whole, alone = recognizer.build(SPECS[NAME], 7), recognizer.build(SPECS[NAME], None)
    assert set(whole.state_dict()) - set(alone.state_dict()) == {"head.fc.weight"}
    alone.set_inference_weights(whole.state_dict(), fuse=False)
    whole.eval()
    x = paddle.rand([2, 3, 32, 32])
    assert np.array_equal(alone(x).numpy(), whole(x).numpy())
