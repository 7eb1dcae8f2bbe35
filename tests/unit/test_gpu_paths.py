"""What differs on a GPU, with fake devices, patched kernels and stubs: no GPU is needed, and none is used."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import signal
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.networks import SPECS, TINY_CLIP

paddle = pytest.importorskip("paddle")

import paddle.nn.functional as F

from paddlex_feat import cli, errors
from paddlex_feat.config import load
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ConnectionLostError, DeviceError, FeatError, OutOfMemoryError, WeightsError
from paddlex_feat.inference.engines import EngineOptions, EngineSpec, create, onnx_engine, paddle_engine
from paddlex_feat.inference.engines.graph_check import _GPU_ONLY, _PURE, check_cpu_kernels
from paddlex_feat.inference.export.convert import write_forms
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.models import attention, recognizer, token_layers
from paddlex_feat.models.heads import ArcMargin
from paddlex_feat.modes import MODES, train, train_build, trained_model
from paddlex_feat.modes import worker as places
from paddlex_feat.runtime import device, gpus, launch, paddle_import
from paddlex_feat.runtime.distributed import ProcessGroup

NAME = "PP-ShiTuV2_rec"


def config(*overrides: str):
    settings = ("Global.dataset_dir=/data", "Train.pretrain_weight_path=null", *overrides)
    return load.load(NAME, [load.split_override(s) for s in settings])[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """An inference directory of a small CLIP network."""
    folder = tmp_path_factory.mktemp("exported")
    paddle.seed(0)
    network = recognizer.build(TINY_CLIP, None)
    Exporter(network, NAME, Preprocess(32)).write(weights_of(network), folder)
    return folder


def weights_of(network) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


# Devices


@pytest.mark.parametrize(
    ("device", "visible", "selected", "rank", "own"),
    [
        ("gpu:0,1", 2, "1", 1, "gpu:1"),
        ("gpu:2,3", 2, "0", 0, "gpu:0"),
        ("gpu:2,3", 2, "1", 1, "gpu:1"),
        ("gpu:3,1", 2, "1", 1, "gpu:1"),
        ("gpu:5", 4, None, 3, "gpu:3"),  # a job that a cluster starts
        ("gpu", 1, None, 3, "gpu:0"),  # … which shows each process a single GPU
        ("auto", 2, "1", 1, "gpu:1"),
        ("cpu:0,1", 2, None, 1, "cpu"),
    ],
)
def test_each_process_of_a_job_takes_the_gpu_that_is_its_own(
    device, visible, selected, rank, own, fake_gpus, monkeypatch
):
    taken = fake_gpus(visible)
    joined = []
    monkeypatch.setattr(ProcessGroup, "init", lambda group: joined.append(os.environ.get("FLAGS_selected_gpus")))
    monkeypatch.delenv("FLAGS_selected_gpus", raising=False)
    if selected:
        monkeypatch.setenv("FLAGS_selected_gpus", selected)
    place = places.init_worker(config(f"Global.device={device}"), ProcessGroup(rank, 4, rank, 4))
    assert place.device == own and taken == [own]
    if own != "cpu":  # Paddle's collectives take this device
        assert joined == [own.partition(":")[2]]


def test_auto_names_the_value_for_all_gpus(fake_gpus, caplog):
    caplog.set_level(logging.INFO)
    fake_gpus(1)
    places.init_worker(config("Global.device=auto"), ProcessGroup())
    assert "gpu:0,1" not in caplog.text
    assert fake_gpus(3) == []
    assert places.init_worker(config("Global.device=auto"), ProcessGroup()).device == "gpu:0"
    lines = [r.message for r in caplog.records if "Global.device=gpu:0,1,2" in r.message]
    assert len(lines) == 1


def test_a_gpu_that_auto_does_not_use_is_warned_of_once(fake_gpus, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(gpus, "NVIDIA_DRIVER", tmp_path / "version")
    gpus._warn.cache_clear()
    assert device.resolve_device("auto") == "cpu" and not caplog.records
    (tmp_path / "version").touch()
    assert [device.resolve_device(name) for name in ("cpu", "auto", "auto")] == ["cpu"] * 3
    assert [r.message.partition(",")[0] for r in caplog.records] == ["An NVIDIA driver is installed"]
    fake_gpus(0)
    assert device.resolve_device("auto") == "cpu"
    assert "sees no GPU" in caplog.records[-1].message and len(caplog.records) == 2
    fake_gpus(1)
    assert device.resolve_device("auto") == "gpu:0" and len(caplog.records) == 2
    gpus._warn.cache_clear()


@pytest.mark.parametrize("there", ["driver wheel", "driver", "wheel", "driver wheel hidden"])
def test_a_training_on_auto_sets_the_flags_of_the_device_that_it_will_take(there, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    def version(name: str) -> str:
        if name == "paddlepaddle-gpu" and "wheel" not in there:
            raise importlib.metadata.PackageNotFoundError(name)
        return "3.3.1"

    def prepare(threads, training, onednn, deterministic, fast_products):
        raise Stop(onednn)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setattr(gpus, "NVIDIA_DRIVER", tmp_path / "version")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "" if "hidden" in there else "0")
    monkeypatch.setattr(train, "read_data", lambda *_: None)
    monkeypatch.setattr(train, "prepare_paddle", prepare)
    if "driver" in there:
        (tmp_path / "version").touch()
    with pytest.raises(Stop) as stopped:
        train.run(config("Global.device=auto"), tmp_path, ProcessGroup())
    assert stopped.value.args[0] is (there != "driver wheel")


def test_paddle_inference_leaves_the_workspace_of_convolutions_alone(monkeypatch):
    flag = "FLAGS_conv_workspace_size_limit"
    monkeypatch.setenv(flag, "64")
    paddle_import.prepare_paddle()
    assert os.environ[flag] == "64"
    monkeypatch.delenv(flag)
    paddle_import.prepare_paddle()
    assert os.environ[flag] == "512"


# Precision


@pytest.mark.parametrize(
    ("capability", "dtype", "fix"),
    [
        ((6, 1), "float16", "OFF."),
        ((7, 5), "bfloat16", "float16"),
        ((7, 5), "float16", None),
        ((8, 0), "bfloat16", None),
        ((12, 0), "bfloat16", None),
    ],
)
def test_a_precision_that_the_gpu_lacks_is_an_error(capability, dtype, fix, fake_gpus, monkeypatch, exported):
    fake_gpus(2)
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda device: f"card {device}")
    monkeypatch.setattr(paddle_engine, "_create_predictor", lambda *_: None)
    place = places.Worker("gpu:1", 0, 1, ProcessGroup())
    monkeypatch.setattr(trained_model, "init_worker", lambda *_: place)
    short = {"float16": "fp16", "bfloat16": "bf16"}[dtype]
    asked = (
        ("Train.amp", lambda c: train_build.build_state(c("Train.amp=O1"), 2, [0, 1], None, place)),
        (
            "Evaluate.amp",
            lambda c: trained_model.load_model(c("Evaluate.amp=O1"), Path("absent.pdparams"), ProcessGroup()),
        ),
        ("precision", lambda _: paddle_engine.PaddleEngine(exported, EngineOptions("paddle", short, device="gpu:1"))),
    )
    for where, ask in asked:
        if fix is None:
            gpus.require_amp("gpu:1", dtype, where)
            continue
        with pytest.raises(DeviceError, match=r"gpu:1 \(card 1\) has compute capability") as error:
            ask(lambda *words: config(*words, f"Train.amp_dtype={dtype}"))
        assert error.value.where == where and (where == "precision" or fix in error.value.fix)


def test_a_cosine_above_one_gives_finite_logits_and_gradients(monkeypatch):
    """TF32 products of unit vectors can be 1.001."""
    head = ArcMargin(8, 3)
    x, labels = paddle.transpose(head.weight, [1, 0]).detach(), paddle.arange(3)
    x.stop_gradient = False
    matmul = paddle.matmul
    for factor in (1.00002, 1.001):
        monkeypatch.setattr(paddle, "matmul", lambda a, b, factor=factor: matmul(a, b) * factor)
        logits = head(x, labels)
        logits.sum().backward()
        assert float(paddle.diag(head(x)).max()) > 1
        for values in (logits, x.grad, head.weight.grad):
            assert np.isfinite(values.numpy()).all()


def test_engines_on_a_gpu_are_compared_by_cosine(exported, monkeypatch, caplog):
    """Their float32 is TF32, each in its own way."""

    class Rounding:
        precision, micro_batch = "fp32", 0

        def __init__(self, name, device):
            self.name, self.device = name, device

        def run(self, x):
            return np.eye(len(x), 8, dtype=np.float32) + (3e-3 if self.name == "onnx" else 0)

    monkeypatch.setattr(create, "_seconds", lambda engine, x: {"paddle": 2.0, "onnx": 1.0}[engine.name])
    for devices, fastest in ((("gpu:0", "gpu:0"), "onnx"), (("gpu:0", "cpu"), "onnx"), (("cpu", "cpu"), "paddle")):
        specs = [
            EngineSpec(name, lambda *_, n=name, d=device: Rounding(n, d), package="numpy", install="numpy")
            for name, device in zip(("paddle", "onnx"), devices, strict=True)
        ]
        assert create._fastest(exported, specs, EngineOptions()).name == fastest


# Attention


def gpus_choice(monkeypatch, choice: str) -> None:
    """Let Paddle's attention choose the kernel that it would choose on a GPU."""
    module = sys.modules.get("paddle.nn.functional.sdpa")
    if module is not None:
        monkeypatch.setattr(module, "select_sdp_for_sdpa", lambda *_: choice)
    else:  # before 3.3
        monkeypatch.setattr(sys.modules["paddle.nn.functional.flash_attention"], "_select_sdp", lambda *_: choice)


def operators(graph: Path) -> set[str]:
    found: set[str] = set()
    json.loads(graph.read_text(), object_pairs_hook=lambda p: found.update(v for k, v in p if k == "#") or dict(p))
    return {name.partition(".")[2] for name in found if name[:2] in ("0.", "1.")}


@pytest.mark.parametrize("choice", ["mem_efficient", "flash_attn"])
def test_a_clip_graph_has_operators_with_a_cpu_kernel_alone_whatever_a_gpu_would_choose(choice, tmp_path, monkeypatch):
    paddle.seed(0)
    network = recognizer.build(TINY_CLIP, None)
    state = weights_of(network)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    gpus_choice(monkeypatch, choice)
    exporter = Exporter(network, NAME, Preprocess(32))
    exporter.write(state, tmp_path)
    kernels = paddle.base.core._get_registered_phi_kernels("function")  # of a CPU build
    builtin = {"parameter", "combine", "constant", "data", "fetch", "feed"}
    computing = {n.rstrip("_") for n in operators(tmp_path / "inference.json") if not n.startswith(("t_", "a_"))}
    assert {"matmul", "softmax", "conv2d"} <= computing
    assert computing - builtin <= set(kernels)
    assert exporter.largest_difference(state, tmp_path, images, "cpu") <= 1e-5
    if choice == "flash_attn":
        return
    pytest.importorskip("paddle2onnx")
    pytest.importorskip("onnxruntime")
    write_forms(tmp_path, ["paddle", "onnx"])
    assert exporter.differences(state, tmp_path, [images], "cpu", 0, ["onnx"])["onnx"] <= 1e-5


def test_the_patched_choice_is_one_that_paddles_own_attention_takes(tmp_path, monkeypatch):
    """A CPU build cannot even capture it, so the test above can fail."""
    gpus_choice(monkeypatch, "mem_efficient")
    monkeypatch.setattr(token_layers, "attention", F.scaled_dot_product_attention)
    network = recognizer.build(TINY_CLIP, None)
    with pytest.raises(Exception, match="memory_efficient_attention"):
        Exporter(network, NAME, Preprocess(32)).write(weights_of(network), tmp_path)


@pytest.mark.parametrize("pir", [True, False])
def test_a_graph_with_an_operator_of_gpus_is_an_error(pir, tmp_path, monkeypatch):
    monkeypatch.setattr("paddlex_feat.inference.engines.graph_check._GPU_ONLY", {"softmax"})
    network = recognizer.build(TINY_CLIP, None)
    with pytest.raises(WeightsError, match=r"operators without a CPU kernel: '(1\.)?softmax'\."):
        Exporter(network, NAME, Preprocess(32), pir=pir).write(weights_of(network), tmp_path)


def test_the_operators_of_gpus_have_no_cpu_kernel(exported):
    kernels = set(paddle.base.core._get_registered_phi_kernels("function"))
    assert _GPU_ONLY <= _PURE and not _GPU_ONLY & kernels
    check_cpu_kernels(exported / "inference.json")


def test_float32_attention_never_reaches_paddles_choice_and_is_its_cpu_result(monkeypatch):
    q, k, v = (paddle.randn([2, 5, 3, 8]) for _ in range(3))
    expected = F.scaled_dot_product_attention(q, k, v).numpy()
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *_: pytest.fail("not for float32"))
    assert np.array_equal(attention.attention(q, k, v).numpy(), expected)
    network = recognizer.build(TINY_CLIP, 2)
    network(paddle.randn([2, 3, 32, 32]))


@pytest.mark.parametrize(
    ("dtype", "gpu", "capability", "head", "flash"),
    [
        ("float16", True, (8, 0), 64, True),
        ("bfloat16", True, (9, 0), 64, True),
        ("float32", True, (9, 0), 64, False),
        ("float16", True, (7, 5), 64, False),
        ("float16", True, (8, 0), 12, False),
        ("bfloat16", False, (9, 0), 64, False),
    ],
)
def test_flash_attention_is_for_half_precision_on_gpus_that_have_it(dtype, gpu, capability, head, flash, monkeypatch):
    place = SimpleNamespace(is_gpu_place=lambda: gpu, gpu_device_id=lambda: 1)
    monkeypatch.setattr(attention, "_capability", {1: capability}.__getitem__)
    assert (
        attention._has_flash_attention(
            SimpleNamespace(dtype=getattr(paddle, dtype), place=place, shape=[2, 5, 3, head])
        )
        is flash
    )


# Memory

GPU_TEXT = """

--------------------------------------
C++ Traceback (most recent call last):
--------------------------------------
0   ncclAllReduce
----------------------
Error Message Summary:
----------------------
ResourceExhaustedError:

Out of memory error on GPU 1. Cannot allocate 9.187500GB memory on GPU 1, 78.9GB memory has been allocated and available
memory is only 200MB.
"""


def real_paddle_error() -> Exception:
    with pytest.raises(MemoryError) as error:
        paddle.zeros([10**13])
    return error.value


def real_numpy_error() -> Exception:
    with pytest.raises(MemoryError) as error:
        np.ones(2**60, np.uint8)
    return error.value


@pytest.mark.parametrize(
    ("error", "where"),
    [
        (real_paddle_error, "this machine"),
        (real_numpy_error, "this machine"),
        (lambda: RuntimeError("std::bad_alloc"), "this machine"),
        (lambda: RuntimeError(GPU_TEXT), "GPU 1"),
        (lambda: OSError("(External) CUBLAS error(3), CUBLAS_STATUS_ALLOC_FAILED (at blas.cc:1)"), "the GPU"),
        (lambda: OSError("(External) CUDA error(2), out of memory."), "the GPU"),
    ],
)
@pytest.mark.parametrize("mode", ["train", "evaluate", "predict", "export", "check_dataset"])
def test_a_lack_of_memory_names_what_to_lower_in_workers_too(error, where, mode, tmp_path):
    spec = MODES.get(mode)
    for size in (1, 2):
        found = cli._explain(error(), spec, tmp_path, ProcessGroup(0, size))
        assert type(found) is OutOfMemoryError and f"memory on {where}" in found.what
        key = {"train": "Train.batch_size", "evaluate": "Evaluate.batch_size", "predict": "Predict.batch_size"}
        assert key.get(mode, "Lower Train.") in found.fix and ("nvidia-smi" in found.fix) == ("GPU" in where)
    launch.report_failure(tmp_path, found, 0)
    job = launch._reason(launch._failures(tmp_path), tmp_path, 1, FeatError("Killed."), 2)
    assert type(job) is OutOfMemoryError and job.fix == found.fix and job.where == f"worker 0, mode {mode}"


def test_other_errors_are_not_taken_for_a_lack_of_memory(tmp_path):
    group, spec = ProcessGroup(0, 2), MODES.get("train")
    error = RuntimeError("NCCL error: unhandled system error, connection closed")
    lost = cli._explain(error, spec, tmp_path, group)
    assert type(lost) is ConnectionLostError
    assert type(cli._explain(ValueError("odd"), spec, tmp_path, group)) is FeatError
    assert errors.out_of_memory(WeightsError("Cannot allocate."), "a", "b") is None


def test_a_training_step_without_memory_ends_with_the_error(tmp_path, monkeypatch, capsys):
    """The mode raises what Paddle really raises; result file, console and exit code are the command's."""
    monkeypatch.setattr(train, "run", lambda *_, **__: paddle.zeros([10**13]))
    assert cli.run(config("Global.mode=train", f"Global.output={tmp_path}")) == 1
    result = json.loads((tmp_path / "train_result.json").read_text())
    assert "OutOfMemoryError" in result["err_type"] and "Train.accumulate_steps" in result["err_msg"]


def test_an_engine_out_of_memory_raises_that_error(exported, monkeypatch):
    extract = FeatureExtractor(exported)
    monkeypatch.setattr(extract.engine, "run", lambda x: paddle.zeros([10**13]))
    with pytest.raises(OutOfMemoryError, match="this machine") as error:
        extract(np.zeros((2, 32, 32, 3), np.uint8))
    assert "batch_size" in error.value.fix


# Engines


def test_the_thread_of_an_engine_makes_its_gpu_the_current_one_first(exported, fake_gpus, monkeypatch):
    fake_gpus(2)
    done = []

    def note(what):
        done.append((what, threading.current_thread().name.partition("_")[0]))

    core = paddle.base.core
    monkeypatch.setattr(core, "set_cuda_current_device_id", lambda gpu: note(f"gpu {gpu}"), raising=False)
    monkeypatch.setattr(paddle_engine, "_create_predictor", lambda folder, options: note(options.device))
    engine = paddle_engine.PaddleEngine(exported, EngineOptions(device="gpu:1"))
    assert engine.device == "gpu:1" and done == [("gpu 1", "engine"), ("gpu:1", "engine")]
    assert paddle_engine.PaddleEngine(exported, EngineOptions(device="cpu")).device == "cpu" and done[2:] == [
        ("cpu", "engine")
    ]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no os.fork")
def test_a_model_on_a_gpu_raises_an_error_in_a_forked_process(exported, monkeypatch):
    extract, images = FeatureExtractor(exported), np.zeros((1, 32, 32, 3), np.uint8)
    extract(images)
    for where, code in (("gpu:0", 3), ("cpu", 0)):
        monkeypatch.setattr(extract.engine, "device", where)
        child = os.fork()
        if not child:
            signal.alarm(20)
            try:
                extract(images)
                os._exit(0)
            except FeatError as error:
                os._exit(3 if "spawn" in str(error.fix) else 4)
            finally:
                os._exit(5)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == code


class OnnxRuntime:
    """As much of onnxruntime-gpu as the engine uses."""

    def __init__(self, starts: list[str]):
        self.calls: list[object] = []
        self.SessionOptions = SimpleNamespace
        self._starts = starts

    def get_available_providers(self) -> list[str]:
        return ["CUDAExecutionProvider", "CPUExecutionProvider"]

    def preload_dlls(self) -> None:
        print("Failed to load a library")
        self.calls.append("preload")

    def InferenceSession(self, file: str, settings: object, providers: list[tuple[str, dict]]) -> object:
        self.calls.append(providers)
        return SimpleNamespace(get_providers=lambda: self._starts, get_inputs=lambda: [SimpleNamespace(name="x")])


def test_onnx_runtime_loads_cuda_and_does_not_fall_back_silently(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(EngineSpec, "require_installed", lambda spec: None)
    (tmp_path / "inference.onnx").touch()
    module = OnnxRuntime(["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setitem(sys.modules, "onnxruntime", module)
    engine = onnx_engine.OnnxEngine(tmp_path, EngineOptions(device="gpu:1"))
    options = {"device_id": 1, "cudnn_conv_algo_search": "HEURISTIC"}
    assert module.calls == ["preload", [("CUDAExecutionProvider", options)]]
    assert (engine.device, engine.micro_batch, capsys.readouterr().out) == ("gpu:1", 0, "")
    monkeypatch.setitem(sys.modules, "onnxruntime", OnnxRuntime(["CPUExecutionProvider", "CUDAExecutionProvider"]))
    with pytest.raises(DeviceError, match="could not start CUDAExecutionProvider"):
        onnx_engine.OnnxEngine(tmp_path, EngineOptions(device="auto"))


@pytest.mark.parametrize(("device", "default"), [("cpu", 1), ("gpu:0", 32)])
def test_the_default_batch_of_predictions(device, default, exported, monkeypatch):
    extract = FeatureExtractor(exported)
    monkeypatch.setattr(extract.engine, "device", device)
    monkeypatch.setattr(extract.engine, "micro_batch", 8 if device == "cpu" else 0)
    sizes: list[int] = []
    run = extract.engine.run
    monkeypatch.setattr(extract.engine, "run", lambda x: sizes.append(len(x)) or run(x))
    images = [np.full((32, 32, 3), i, np.uint8) for i in range(33)]

    def batches(given, **options) -> list[int]:
        sizes.clear()
        assert len(list(Predictor(extract, **options).predict(given))) == len(images)
        return sizes

    assert Predictor(extract).batch_size == default
    assert batches(images) == ([32, 1] if default == 32 else [8, 8, 8, 8, 1])
    assert batches(iter(images)) == [1] * 33  # the next one may be long in coming
    assert batches(images, batch_size=1) == ([1] * 33 if default == 32 else [8, 8, 8, 8, 1])
    assert batches(iter(images), batch_size=11) == ([11] * 3 if default == 32 else [8, 3] * 3)


def test_the_yaml_of_the_models_decides_over_the_default_batch():
    for name in SPECS:
        assert load.load(name, [])[0].Predict.batch_size == 1
    assert config("Predict.batch_size=null").Predict.batch_size is None
