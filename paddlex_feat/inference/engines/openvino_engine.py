"""OpenVINO on an inference directory. Paddle is not imported."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from paddlex_feat.errors import DeviceError, WeightsError
from paddlex_feat.inference.engines.paddle_engine import CPU_MICRO_BATCH
from paddlex_feat.inference.export.convert import import_openvino, onnx_file, require
from paddlex_feat.inference.model_info import PREFIX
from paddlex_feat.runtime.cpu import cpu_threads
from paddlex_feat.runtime.device import checked_device

_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # OpenVINO's names


class OpenVINOEngine:
    """`inference.xml`, else `inference.onnx`, else the directory's Paddle graph converted, on a CPU.

    Args:
        folder: inference directory.
        device: "auto" or "cpu".
        threads: CPU threads; 0 takes OMP_NUM_THREADS, else the physical cores.
        precision: fp32, bf16 or fp16; DeviceError where the processor lacks it.

    Raises WeightsError, DeviceError, DependencyError.
    """

    name = "openvino"
    micro_batch = CPU_MICRO_BATCH
    device = "cpu"

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 0, precision: str = "fp32"):
        if checked_device(device).partition(":")[0] not in ("auto", "cpu"):
            raise DeviceError(
                "The engine openvino runs on CPUs.", where=f"device={device}", fix="Use device cpu, or engine paddle."
            )
        require("openvino")
        openvino = import_openvino()

        self.precision = precision
        self._lock = threading.Lock()  # a request runs one input at a time, and several threads may share a model
        core = openvino.Core()
        can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision.upper() not in can:  # it would compute in fp32 and not say so
            have = [name for name in _TYPES if name.upper() in can]
            raise DeviceError(
                f"OpenVINO does not compute in {precision} on this processor.",
                where="precision",
                fix=f"Use {' or '.join(have)}.",
            )
        own = folder / f"{PREFIX}.xml"
        file = own if own.is_file() else onnx_file(folder)
        settings = {
            # One request at a time with all threads. Two at once were within 10 % of it, and do nothing for one image.
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": cpu_threads(threads),
            "INFERENCE_PRECISION_HINT": _TYPES[precision],  # left to itself, it takes bf16 where that is fast
        }
        try:
            self._request = core.compile_model(core.read_model(str(file)), "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise WeightsError(
                "OpenVINO cannot load the graph.",
                where=str(file),
                fix="Export the model again, or remove the file: it is then made from inference.json.",
            ) from error

    def run(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] -> float32 [N, D]."""
        with self._lock:  # the input is read where it lies, which needs it to be contiguous
            return self._request.infer([np.ascontiguousarray(x)], share_inputs=True)[0]
