"""What a training asks of Paddle on a GPU, by spies: TF32, flags, float32 gradients, BatchNorm of all devices."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from support.networks import TINY_CLIP

from paddlex_feat.config.load import load
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ConfigError, DeviceError
from paddlex_feat.losses.combined import recipe_loss
from paddlex_feat.models import recognizer
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.modes import train_build, train_kernels
from paddlex_feat.modes.parts import keeps_rounding
from paddlex_feat.modes.worker import Worker
from paddlex_feat.runtime import cpu, paddle_import
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.step import Step, TrainingNetwork


class Pair(ProcessGroup):
    """A group of two in which the other rank never has anything to say."""

    def any_rank(self, own: bool) -> bool:
        return own

    def broadcast(self, array):
        return array


def config(**settings):
    pairs = [("Train.pretrain_weight_path", None), ("Train.input_size", 32), *settings.items()]
    return load("PP-ShiTuV2_rec", [(key.replace("__", "."), value) for key, value in pairs])[0]


def place(device: str = "gpu:0", size: int = 1) -> Worker:
    return Worker(device, 1, 1, Pair(0, size, 0, size) if size > 1 else ProcessGroup())


@pytest.fixture
def gpu_kernels(monkeypatch):
    """Switches and flags as they are set, by name."""
    found: dict[str, object] = {}
    for name in ("set_cublas_switch", "set_cudnn_switch"):
        monkeypatch.setattr(paddle.base.core, name, lambda on, name=name: found.update({name: on}))
    monkeypatch.setattr(paddle, "set_flags", found.update)
    return found


@pytest.mark.parametrize("tf32", [True, False, None])
def test_tf32_sets_both_switches_on_a_gpu_alone(gpu_kernels, tf32):
    train_kernels.choose_kernels(config(Train__tf32=tf32).Train, place("cpu"))
    assert gpu_kernels == {}
    train_kernels.choose_kernels(config(Train__tf32=tf32).Train, place())
    assert gpu_kernels == ({} if tf32 is None else {"set_cublas_switch": tf32, "set_cudnn_switch": tf32})


def test_a_paddle_without_the_switches_gets_a_warning(monkeypatch, caplog):
    monkeypatch.delattr(paddle.base.core, "set_cublas_switch")
    monkeypatch.setattr(paddle.base.core, "set_cudnn_switch", lambda on: None)
    train_kernels.choose_kernels(config(Train__tf32=True).Train, place())
    assert "Train.tf32 has no effect" in caplog.text and "set_cublas_switch" in caplog.text


def test_mixed_precision_sets_paddleclas_flags_that_the_build_knows(gpu_kernels, monkeypatch):
    train_kernels.choose_kernels(config(Train__amp="O1").Train, place())
    both = {"FLAGS_cudnn_batchnorm_spatial_persistent": 1, "FLAGS_max_inplace_grad_add": 8}
    assert gpu_kernels == both

    def knows_one(flags):
        if "FLAGS_max_inplace_grad_add" not in flags:
            raise ValueError("Flag cannot set its value through this function.")
        gpu_kernels.update(flags)

    gpu_kernels.clear()
    monkeypatch.setattr(paddle, "set_flags", knows_one)
    train_kernels.choose_kernels(config(Train__amp="O1").Train, place())
    assert gpu_kernels == {"FLAGS_max_inplace_grad_add": 8}


def test_deterministic_asks_cublas_too_unless_the_user_has(monkeypatch):
    monkeypatch.setattr(paddle_import, "keep_dynamic_mode", lambda: None)
    for users in (None, ":16:8"):
        with contextlib.ExitStack() as stack:
            before = dict(os.environ)
            stack.callback(lambda before=before: (os.environ.clear(), os.environ.update(before)))
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
            if users:
                os.environ["CUBLAS_WORKSPACE_CONFIG"] = users
            paddle_import.prepare_paddle(2)
            assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == users
            paddle_import.prepare_paddle(2, deterministic=True)
            assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == (users or ":4096:8")


@pytest.mark.parametrize(
    ("vendor", "flags", "expected"),
    [("AuthenticAMD", "fma avx2 bmi2", "5"), ("AuthenticAMD", "sse2 bmi", None), ("GenuineIntel", "avx2 fma", None)],
)
def test_mkl_is_told_of_avx2_on_processors_of_amd_alone(vendor, flags, expected, monkeypatch, tmp_path, caplog):
    (tmp_path / "cpuinfo").write_text(f"vendor_id\t: {vendor}\nflags\t\t: fpu {flags} end\n")
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(paddle_import, "keep_dynamic_mode", lambda: None)
    with contextlib.ExitStack() as stack:
        before = dict(os.environ)
        stack.callback(lambda: (os.environ.clear(), os.environ.update(before)))
        os.environ.pop("MKL_DEBUG_CPU_TYPE", None)
        monkeypatch.setattr(paddle_import, "_mkl", {})
        paddle_import.prepare_paddle(2)
        paddle_import.prepare_paddle(2, fast_products=True)
        assert "MKL_DEBUG_CPU_TYPE" not in os.environ and paddle_import.mkl_cpu_type() is None  # MKL may have read it
        monkeypatch.setattr(paddle_import, "_mkl", {})
        paddle_import.prepare_paddle(2, fast_products=True)
        assert os.environ.get("MKL_DEBUG_CPU_TYPE") == expected == paddle_import.mkl_cpu_type()
        paddle_import.restore_environment()
        assert "MKL_DEBUG_CPU_TYPE" not in os.environ and paddle_import.mkl_cpu_type() == expected
        paddle_import.prepare_paddle(2, training=True)  # an official recipe
        assert ("cannot be taken back" in caplog.text) == (expected is not None)
        os.environ["MKL_DEBUG_CPU_TYPE"] = "3"
        monkeypatch.setattr(paddle_import, "_mkl", {})
        paddle_import.prepare_paddle(2, fast_products=True)
        paddle_import.restore_environment()
        assert os.environ["MKL_DEBUG_CPU_TYPE"] == "3"  # the user's


def test_kinds_of_processors_are_read_from_the_system(monkeypatch, tmp_path):
    monkeypatch.setattr(cpu, "_CPUINFO", tmp_path / "none")
    assert not cpu.is_amd_with_avx2() and not cpu.has_avx512()
    (tmp_path / "none").write_text("vendor_id : GenuineIntel\nflags : avx2 avx512f avx512dq\n")
    assert not cpu.is_amd_with_avx2() and cpu.has_avx512()


def test_the_rounding_of_earlier_versions_is_kept_on_request():
    assert keeps_rounding(config(Train__onednn_conv="channels_first"))
    assert keeps_rounding(config(Train__onednn_conv=False))
    assert not keeps_rounding(config())


@pytest.mark.parametrize(
    ("dtype", "size", "accumulate", "expected"),
    [
        ("float16", 1, 1, True),
        ("float16", 1, 4, True),
        ("float16", 2, 1, True),
        ("float16", 2, 4, False),
        ("bfloat16", 1, 1, False),
    ],
)
def test_o2_in_float16_asks_for_float32_gradients(monkeypatch, dtype, size, accumulate, expected):
    asked = []
    monkeypatch.setattr(paddle.amp, "decorate", lambda *a, **named: asked.append((a[2:], named)))
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda *_: (9, 0))
    settings = {"Train__amp": "O2", "Train__amp_dtype": dtype, "Train__accumulate_steps": accumulate}
    state, _ = train_build.build_state(config(**settings), 3, [0, 1, 2], None, place(size=size))
    ((level, as_dtype), named), *others = asked
    assert (level, as_dtype, others) == ("O2", dtype, []) and named["master_weight"] is True
    assert named["master_grad"] is expected and state.model.head in named["excluded_layers"]


def test_a_training_keeps_nothing_of_an_earlier_one_for_float32_gradients(monkeypatch):
    """Paddle keeps the parameters of each network that was decorated in a list of the process."""
    state = importlib.import_module("paddle.amp.auto_cast").amp_global_state()
    monkeypatch.setattr(state, "use_master_grad", True)
    monkeypatch.setattr(state, "model_parameters", [paddle.ones([2])])
    monkeypatch.setattr(paddle.amp, "decorate", lambda *_, **__: None)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda *_: (9, 0))
    train_build.build_state(config(Train__amp="O2", Train__amp_dtype="bfloat16"), 3, [0, 1, 2], None, place())
    assert not state.use_master_grad and state.model_parameters == []


def test_batchnorm_of_all_devices_keeps_names_tensors_and_frozen_layers():
    settings = config(Train__sync_bn=True, Train__freeze=["backbone.stem", "neck"])
    state, frozen_bn_layers = train_build.build_state(settings, 3, [0, 1, 2], None, place(size=2))
    plain, rest = train_build.build_state(config(Train__freeze=["backbone.stem", "neck"]), 3, [0, 1, 2], None, place())
    names = [type(layer).__name__ for layer in state.model.sublayers()]
    assert "SyncBatchNorm" in names and not {"BatchNorm1D", "BatchNorm2D"} & set(names)
    assert list(state.model.state_dict()) == list(plain.model.state_dict())
    for (name, tensor), other in zip(state.weights().items(), plain.weights().values(), strict=True):
        assert np.array_equal(tensor.numpy(), other.numpy()), name
    own, others = state.optimizer._parameter_list, plain.optimizer._parameter_list
    assert {id(p) for p in own} == {id(p) for p in state.model.parameters()}
    for one, other in zip(own, others, strict=True):  # decay and learning rate of each parameter as without it
        assert (one.regularizer is None) == (other.regularizer is None) and one.stop_gradient == other.stop_gradient
        assert one.optimize_attr == other.optimize_attr
    assert len(frozen_bn_layers) == len(rest) > 1 and all(
        type(layer).__name__ == "SyncBatchNorm" for layer in frozen_bn_layers
    )


def test_batchnorm_of_all_devices_needs_gpus_and_several_of_them(caplog):
    model = recognizer.build(NetworkSpec(input_size=32), 3)
    with pytest.raises(DeviceError, match=r"(?s)CPU.*Train\.sync_bn"):
        train_kernels.share_statistics(config(Train__sync_bn=True).Train, model, place("cpu", 2))
    with caplog.at_level(logging.INFO):
        train_kernels.share_statistics(config(Train__sync_bn=True).Train, model, place())
    assert "no effect in a single process" in caplog.text
    assert not any(isinstance(layer, paddle.nn.SyncBatchNorm) for layer in model.sublayers())


@pytest.mark.parametrize(("scaling", "size", "hints"), [("none", 8, 1), ("none", 1, 0), ("linear", 8, 0)])
def test_an_unscaled_learning_rate_of_several_devices_gets_a_hint(caplog, scaling, size, hints):
    with caplog.at_level(logging.INFO):
        train_build.training_plan(config(Train__lr_scaling=scaling).Train, 10, ProcessGroup(0, size, 0, size))
    assert caplog.text.count("Train.lr_scaling scales it") == hints and caplog.text.count("8 devices") == hints


def test_a_head_without_its_loss_stays_and_something_else_has_to_train():
    state, _ = train_build.build_state(config(Train__loss__ce_weight=0), 3, [0, 1, 2], None, place("cpu"))
    assert all(parameter.stop_gradient for parameter in state.model.head.parameters())
    with pytest.raises(ConfigError, match="nothing is left to train"):
        freeze = config(Train__loss__ce_weight=0, Train__freeze=["backbone", "neck"])
        train_build.build_state(freeze, 3, [0, 1, 2], None, place("cpu"))


@pytest.mark.parametrize("compiled", [False, True])
def test_without_a_classification_loss_there_are_no_logits_and_the_same_weights(monkeypatch, compiled):
    images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    after = []
    for classify in (True, False):
        paddle.seed(1)
        model = recognizer.build(TINY_CLIP, 4)
        criterion = recipe_loss(0.1, 0.0, 1.0)
        optimizer = paddle.optimizer.Momentum(0.05, 0.9, model.parameters(), weight_decay=1e-3)
        if not classify:
            monkeypatch.setattr(model, "logits", None)  # calling it would fail
            model.head.weight.stop_gradient = True
        network = TrainingNetwork(model, Preprocess(32), classify=classify)
        step = Step(network, criterion, optimizer, compiled=compiled)
        terms = [step([(images, np.arange(8) % 4)]) for _ in range(3)][-1]
        assert set(terms) == {"TripletAngularMarginLoss", "loss"}
        after.append({name: tensor.numpy() for name, tensor in model.state_dict().items()})
    for name, value in after[0].items():
        # A compiled graph gave an unused head a gradient of 0, with which it decayed.
        assert np.array_equal(value, after[1][name]) or (compiled and name == "head.weight"), name
