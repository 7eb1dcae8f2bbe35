"""An engine by its name, or whichever is fastest here."""

from __future__ import annotations

import ctypes
import importlib.util
import logging
import os
import time
import weakref
from collections.abc import Callable
from pathlib import Path

import numpy as np

from paddlex_feat.errors import ConfigError, DependencyError, WeightsError
from paddlex_feat.inference.engines.onnx_engine import OnnxEngine
from paddlex_feat.inference.engines.openvino_engine import OpenVINOEngine
from paddlex_feat.inference.engines.paddle_engine import Engine, PaddleEngine
from paddlex_feat.inference.model_info import read_info

log = logging.getLogger(__name__)

AUTO = "auto"
# Each with the precisions that it knows; Paddle's fp16 needs a GPU.
PRECISIONS = {"paddle": ("fp32", "bf16", "fp16"), "onnx": ("fp32",), "openvino": ("fp32", "bf16", "fp16")}
_MAKERS: dict[str, Callable[[Path, str, int, str], Engine]] = {
    "paddle": PaddleEngine,
    "onnx": OnnxEngine,
    "openvino": OpenVINOEngine,
}
_PACKAGES = {"paddle": "paddle", "onnx": "onnxruntime", "openvino": "openvino"}
_IMAGES = 4  # of a timed run
_SECONDS, _RUNS = 0.3, 3  # an engine is timed at least once, and for as long as both last
_UNIT_TOLERANCE, _COSINE = 1e-4, 0.999  # of fp32 on a CPU; of the others, and of fp32 on a GPU, which may be TF32


def create_engine(
    folder: Path, name: str = "paddle", device: str = "cpu", threads: int = 0, precision: str = "fp32"
) -> Engine:
    """What runs an inference directory.

    Args:
        folder: inference directory.
        name: "paddle", "onnx", "openvino", or "auto" for the fastest of those that are installed and agree.
        device: "auto", "cpu" or "gpu:N".
        threads: CPU threads; 0 takes OMP_NUM_THREADS, else the physical cores.
        precision: "fp32", "bf16" or "fp16".

    Raises ConfigError for an engine or precision that there is not, WeightsError for a directory that cannot be
    used, DeviceError for a device or processor that cannot do it, DependencyError for what is not installed.
    """
    if name != AUTO and name not in _MAKERS:
        raise ConfigError(f"{name!r} is no engine.", where="engine", fix=f"Possible are {', '.join([*_MAKERS, AUTO])}.")
    knowing = [engine for engine, known in PRECISIONS.items() if precision in known and name in (engine, AUTO)]
    if not knowing:
        known = {p: None for engine, ps in PRECISIONS.items() if name in (engine, AUTO) for p in ps}
        raise ConfigError(
            f"The engine {name} does not compute in {precision!r}.",
            where="precision",
            fix=f"Possible with it: {', '.join(known)}.",
        )
    if name == AUTO:
        engine = _fastest(folder, knowing, device, threads, precision)
    else:
        engine = _MAKERS[name](folder, device, threads, precision)
    _in_use.add(engine)
    return engine


_in_use: weakref.WeakSet[Engine] = weakref.WeakSet()


def _keep_for_ever() -> None:
    """Never destroy an engine in a process that was forked after it was made.

    Its threads do not exist there: ONNX Runtime and Paddle would crash at the process's end, OpenVINO wait for ever.
    """
    for engine in _in_use:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_for_ever)


def _fastest(folder: Path, names: list[str], device: str, threads: int, precision: str) -> Engine:
    """Time the installed ones of the engines and take the fastest of those that give the same features."""
    names = [n for n in names if importlib.util.find_spec(_PACKAGES[n])]
    if device.startswith("gpu"):
        names = [n for n in names if n != "openvino"]
    if not names:
        raise DependencyError(
            f"No engine for {precision} is installed.", where="engine=auto", fix="pip install 'paddlex_feat[cpu]'"
        )
    if len(names) == 1:
        return _MAKERS[names[0]](folder, device, threads, precision)
    size = read_info(folder).preprocess.size
    x = np.random.default_rng(0).standard_normal((_IMAGES, 3, size, size)).astype(np.float32)
    best, reference, first_error, on_gpu = None, None, None, False
    rates: dict[str, float] = {}
    for name in names:
        try:
            engine = _MAKERS[name](folder, device, threads, precision)
            features = engine.run(x)
            on_gpu |= engine.device != "cpu"
            _require_same(reference, features, precision == "fp32" and not on_gpu)
            seconds = _seconds(engine, x)
        except Exception as error:  # noqa: BLE001 - an engine may fail in its own way; the others may not
            log.warning("engine=auto leaves %s out: %s", name, getattr(error, "what", error))
            first_error = first_error or error
            continue
        reference = features if reference is None else reference
        rates[name] = _IMAGES / seconds
        if rates[name] == max(rates.values()):
            best = engine
    if best is None:
        assert first_error is not None
        raise first_error
    measured = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    log.info("engine=auto takes %s; images/s in %s: %s", best.name, precision, measured)
    return best


def _require_same(reference: np.ndarray | None, features: np.ndarray, exactly: bool) -> None:
    """Raise WeightsError if features are not those of the engine before: float32 [N, D] both."""
    if reference is None:
        reference = features  # what is not finite does not agree with itself
    # As unit features, in which a tolerance means the same for every network; a feature may be all zeros.
    a, b = (f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in (reference, features))
    if exactly:
        wrong, same = "largest difference of a unit feature", float(np.abs(a - b).max())
        agrees = same <= _UNIT_TOLERANCE
    else:
        wrong, same = "smallest cosine", float((a * b).sum(axis=1).min())
        agrees = same >= _COSINE
    if not agrees:
        raise WeightsError(f"its features are others ({wrong} {same:.2g}).")


def _seconds(engine: Engine, x: np.ndarray) -> float:
    """The shortest of a few runs."""
    times: list[float] = []
    while not times or (sum(times) < _SECONDS and len(times) < _RUNS):
        start = time.perf_counter()
        engine.run(x)
        times.append(time.perf_counter() - start)
    return min(times)
