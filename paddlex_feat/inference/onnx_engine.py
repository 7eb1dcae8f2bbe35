"""ONNX Runtime on an inference directory. Paddle is not imported."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from paddlex_feat.errors import DeviceError, WeightsError
from paddlex_feat.inference.convert import onnx_file, require
from paddlex_feat.inference.engine import CPU_PIECE
from paddlex_feat.runtime import checked_device, cpu_threads

_ERRORS_ONLY = 3  # it warns of every initializer that it folds


class OnnxEngine:
    """`inference.onnx`, or the directory's Paddle graph converted, on ONNX Runtime in fp32.

    Args:
        folder: inference directory.
        device: "auto" (a GPU if the installed ONNX Runtime is built for one, else the CPU), "cpu" or "gpu:N".
        threads: CPU threads; 0 takes OMP_NUM_THREADS, else the physical cores.
        precision: fp32.

    Raises WeightsError, DeviceError, DependencyError.
    """

    name = "onnx"

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 0, precision: str = "fp32"):
        require("onnxruntime")
        # Else it keeps a data base of events and an identity below ~/.cache.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        import onnxruntime

        self.precision = precision
        provider, options = _provider(device, onnxruntime.get_available_providers())
        file = onnx_file(folder)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = cpu_threads(threads)
        settings.log_severity_level = _ERRORS_ONLY
        try:
            self._session = onnxruntime.InferenceSession(str(file), settings, providers=[(provider, options)])
        except Exception as error:  # its exceptions have no family
            raise WeightsError(
                f"ONNX Runtime cannot load the graph ({type(error).__name__}).",
                where=str(file),
                fix="Export the model again, or remove the file: it is then made from inference.json.",
            ) from error
        if provider not in self._session.get_providers():  # it goes on with the CPU
            raise DeviceError(
                f"ONNX Runtime could not start {provider}.", where="device", fix="See its message above, or use cpu."
            )
        self.piece = CPU_PIECE if provider.startswith("CPU") else 0
        self._input = self._session.get_inputs()[0].name

    def run(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] -> float32 [N, D]."""
        return self._session.run(None, {self._input: x})[0]


def _provider(device: str, available: list[str]) -> tuple[str, dict[str, int]]:
    """ONNX Runtime's name for a device, and its options. The part for GPUs was never run."""
    kind, _, number = checked_device(device).split(",")[0].partition(":")
    on_gpu = "CUDAExecutionProvider" in available
    if kind == "cpu" or (kind == "auto" and not on_gpu):
        return "CPUExecutionProvider", {}
    if kind not in ("auto", "gpu") or not on_gpu:
        raise DeviceError(
            f"The installed ONNX Runtime does not compute on {device}; it has {', '.join(available)}.",
            where="device",
            fix="Use device cpu or engine paddle, or install onnxruntime-gpu for your CUDA version.",
        )
    return "CUDAExecutionProvider", {"device_id": int(number or 0)}
