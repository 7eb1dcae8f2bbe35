"""Make an engine: by its name, or the fastest of those that are installed."""

from __future__ import annotations

import ctypes
import logging
import os
import time
import weakref
from pathlib import Path

import numpy as np

from paddlex_feat.errors import ConfigError, DependencyError, DeviceError, WeightsError
from paddlex_feat.inference.engines import AUTO, Engine, EngineOptions, EngineSpec, find_engine, usable_engines
from paddlex_feat.inference.model_info import read_info
from paddlex_feat.runtime.device import checked_device

log = logging.getLogger(__name__)

_IMAGES = 4  # of a timed run
_SECONDS, _RUNS = 0.3, 3  # an engine is timed at least once, until it has taken either
# Largest difference of a unit feature to the reference engine's, for fp32 on a CPU; our own engines differ by 1e-6.
_UNIT_TOLERANCE = 1e-4
# Smallest cosine to the reference engine's feature otherwise: other precisions, and fp32 on a GPU, which may be TF32.
_COSINE = 0.999


def create_engine(folder: Path, options: EngineOptions | None = None) -> Engine:
    """Load an inference directory on an engine.

    Args:
        folder: inference directory.
        options: engine and how to run it; None: the defaults of `EngineOptions`.

    Raises ConfigError for an unknown engine or precision, WeightsError for a directory that cannot be
    used, DeviceError for a device or processor that cannot do it, DependencyError for a missing package.
    """
    options = options or EngineOptions()
    specs = usable_engines() if options.engine == AUTO else [find_engine(options.engine)]
    able = [spec for spec in specs if options.precision in spec.precisions]
    if not able:
        known = dict.fromkeys(precision for spec in specs for precision in spec.precisions)
        raise ConfigError(
            f"The engine {options.engine} does not compute in {options.precision!r}.",
            where="precision",
            fix=f"Possible with it: {', '.join(known)}.",
            code="unknown-precision",
        )
    engine = _fastest(folder, able, options) if options.engine == AUTO else _make(folder, able[0], options)
    _in_use.add(engine)
    return engine


def _make(folder: Path, spec: EngineSpec, options: EngineOptions) -> Engine:
    """Make an engine on a device that it has."""
    if not _runs_on(spec, options.device):
        raise DeviceError(
            f"The engine {spec.name} runs on {' and '.join(spec.devices)} only.",
            where=f"device={options.device}",
            fix=f"Use device {spec.devices[0]}, or another engine.",
            code="device-unsupported",
        )
    return spec.make(folder, options)


def _runs_on(spec: EngineSpec, device: str) -> bool:
    return checked_device(device).partition(":")[0] in ("auto", *spec.devices)


_in_use: weakref.WeakSet[Engine] = weakref.WeakSet()


def _keep_alive() -> None:
    """Keep the engines of the parent process from being destroyed in a forked one.

    Their threads do not exist there: when it ends, ONNX Runtime and Paddle would crash, and OpenVINO would hang.
    """
    for engine in _in_use:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(engine))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_keep_alive)


def _fastest(folder: Path, specs: list[EngineSpec], options: EngineOptions) -> Engine:
    """Time the installed engines and take the fastest of those that give the same features."""
    specs = [spec for spec in specs if spec.is_installed() and _runs_on(spec, options.device)]
    if not specs:
        raise DependencyError(
            f"No engine for {options.precision} is installed.",
            where="engine=auto",
            fix="pip install 'paddlex_feat[cpu]'",
            code="no-engine",
        )
    if len(specs) == 1:
        return _make(folder, specs[0], options)
    size = read_info(folder).preprocess.size
    x = np.random.default_rng(0).standard_normal((_IMAGES, 3, size, size)).astype(np.float32)
    reference: np.ndarray | None = None
    first_error: Exception | None = None
    on_gpu = False
    best: Engine | None = None  # the only one that is kept: each holds all weights
    rates: dict[str, float] = {}
    for spec in specs:
        try:
            engine = _make(folder, spec, options)
            features = engine.run(x)
            on_gpu |= engine.device != "cpu"
            _require_same(reference, features, options.precision == "fp32" and not on_gpu)
            rates[spec.name] = _IMAGES / _seconds(engine, x)
        except Exception as error:  # noqa: BLE001 - each engine has errors of its own; the others may work
            log.warning("engine=auto leaves %s out: %s", spec.name, getattr(error, "what", error))
            first_error = first_error or error
            continue
        reference = features if reference is None else reference
        if rates[spec.name] == max(rates.values()):
            best = engine
    if best is None:
        assert first_error is not None
        raise first_error
    measured = ", ".join(f"{name} {rate:.0f}" for name, rate in rates.items())
    log.info("engine=auto takes %s; images/s in %s: %s", best.name, options.precision, measured)
    return best


def _require_same(reference: np.ndarray | None, features: np.ndarray, exactly: bool) -> None:
    """Raise WeightsError if features differ from those of the reference engine: float32 [N, D] both."""
    if reference is None:
        reference = features  # NaN and infinity do not agree with themselves
    # Unit features, for which a tolerance means the same for every network; a feature may be all zeros.
    a, b = (f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in (reference, features))
    if exactly:
        measure, value = "largest difference of a unit feature", float(np.abs(a - b).max())
        agrees = value <= _UNIT_TOLERANCE
    else:
        measure, value = "smallest cosine", float((a * b).sum(axis=1).min())
        agrees = value >= _COSINE
    if not agrees:
        raise WeightsError(
            f"its features disagree with the reference engine's ({measure} {value:.2g}).", code="engine-disagrees"
        )


def _seconds(engine: Engine, x: np.ndarray) -> float:
    """Seconds of the shortest of a few runs."""
    times: list[float] = []
    while not times or (sum(times) < _SECONDS and len(times) < _RUNS):
        start = time.perf_counter()
        engine.run(x)
        times.append(time.perf_counter() - start)
    return min(times)
