"""ONNX Runtime on an inference directory. Paddle is not imported."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.errors import DeviceError, WeightsError, out_of_memory
from paddlex_feat.inference.engines import CPU_MICRO_BATCH, ENGINES, EngineOptions
from paddlex_feat.inference.export.convert import onnx_file
from paddlex_feat.runtime.cpu import cpu_threads
from paddlex_feat.runtime.device import checked_device

log = logging.getLogger(__name__)
_CUDA = "CUDAExecutionProvider"
_ERRORS_ONLY = 3  # it warns of every initializer that it folds


class OnnxEngine:
    """`inference.onnx`, or the directory's Paddle graph converted, on ONNX Runtime in fp32.

    Args:
        folder: inference directory.
        options: how to run it; the device "auto" is a GPU if the installed ONNX Runtime is built for one.

    Raises WeightsError, DeviceError, DependencyError.
    """

    name = "onnx"

    def __init__(self, folder: Path, options: EngineOptions):
        ENGINES.get(self.name).require_installed()
        # Otherwise it keeps a data base of events and an identity below ~/.cache.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self.precision = options.precision
        provider, provider_options = _provider(options.device, onnxruntime.get_available_providers())
        if provider == _CUDA:
            _load_cuda(onnxruntime)
        file = onnx_file(folder, options.trust_graph)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = cpu_threads(options.threads)
        settings.log_severity_level = _ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(str(file), settings, providers=[(provider, provider_options)])
        except Exception as error:  # its exceptions have no family
            no_memory = out_of_memory(error, str(file), "Use a smaller model or another device.")
            if no_memory:
                raise no_memory from error
            raise WeightsError(
                f"ONNX Runtime cannot load the graph ({type(error).__name__}).",
                where=str(file),
                fix="Export the model again, or remove the file: it is then made from inference.json.",
                code="graph-damaged",
            ) from error
        if self._session.get_providers()[:1] != [provider]:  # it falls back to the CPU
            raise DeviceError(
                f"ONNX Runtime could not start {provider}.",
                where="device",
                fix="See its message above, or use cpu.",
                code="device-failed",
            )
        self.device = "cpu" if provider != _CUDA else f"gpu:{provider_options['device_id']}"
        self.micro_batch = CPU_MICRO_BATCH if provider != _CUDA else 0
        self._input = self._session.get_inputs()[0].name

    def run(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] -> float32 [N, D]."""
        features: np.ndarray = self._session.run(None, {self._input: x})[0]
        return features


def _load_cuda(onnxruntime: Any) -> None:
    """Load the CUDA libraries of pip packages (nvidia-*), which ONNX Runtime does not find by itself."""
    if hasattr(onnxruntime, "preload_dlls"):  # from 1.21 on
        notes = io.StringIO()
        with contextlib.redirect_stdout(notes):  # it prints what it does not find; the system may have it
            onnxruntime.preload_dlls()
        log.debug("ONNX Runtime's notes on CUDA libraries: %s", notes.getvalue().strip() or "none")


def _provider(device: str, available: list[str]) -> tuple[str, dict[str, Any]]:
    """ONNX Runtime's name for a device, and its options. The part for GPUs was never run."""
    kind, _, number = checked_device(device).split(",")[0].partition(":")
    on_gpu = _CUDA in available
    if kind == "cpu" or (kind == "auto" and not on_gpu):
        return "CPUExecutionProvider", {}
    if kind not in ("auto", "gpu") or not on_gpu:
        raise DeviceError(
            f"The installed ONNX Runtime does not compute on {device}; it has {', '.join(available)}.",
            where="device",
            fix="Use device cpu or engine paddle, or install onnxruntime-gpu for your CUDA version.",
            code="device-unsupported",
        )
    # Its own choice, EXHAUSTIVE, tries every algorithm for seconds at each new batch size.
    return _CUDA, {"device_id": int(number or 0), "cudnn_conv_algo_search": "HEURISTIC"}
