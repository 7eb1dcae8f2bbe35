"""OpenVINO on an inference directory. Paddle is not imported."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from paddlex_feat.errors import DeviceError, WeightsError
from paddlex_feat.inference.engines import CPU_MICRO_BATCH, ENGINES, EngineOptions
from paddlex_feat.inference.export.convert import import_openvino, onnx_file
from paddlex_feat.inference.model_info import PREFIX
from paddlex_feat.runtime.cpu import cpu_threads

_TYPES = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}  # OpenVINO's names


class OpenVINOEngine:
    """`inference.xml`, else `inference.onnx`, else the directory's Paddle graph converted, on a CPU.

    Args:
        folder: inference directory.
        options: how to run it.

    Raises WeightsError, DependencyError, and DeviceError if the processor lacks the precision.
    """

    name = "openvino"
    micro_batch = CPU_MICRO_BATCH
    device = "cpu"

    def __init__(self, folder: Path, options: EngineOptions):
        ENGINES.get(self.name).require_installed()
        openvino = import_openvino()

        self.precision = precision = options.precision
        self._lock = threading.Lock()  # a request runs one input at a time, and several threads may share a model
        core = openvino.Core()
        can = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision.upper() not in can:  # it would silently compute in fp32
            have = [name for name in _TYPES if name.upper() in can]
            raise DeviceError(
                f"OpenVINO does not compute in {precision} on this processor.",
                where="precision",
                fix=f"Use {' or '.join(have)}.",
                code="precision-unsupported",
            )
        own = folder / f"{PREFIX}.xml"
        file = own if own.is_file() else onnx_file(folder, options.trust_graph)
        settings = {
            # One request at a time with all threads. Two at once were within 10 % of it, and do nothing for one image.
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": cpu_threads(options.threads),
            "INFERENCE_PRECISION_HINT": _TYPES[precision],  # left to itself, it takes bf16 where that is fast
        }
        try:
            self._request = core.compile_model(core.read_model(str(file)), "CPU", settings).create_infer_request()
        except RuntimeError as error:
            raise WeightsError(
                "OpenVINO cannot load the graph.",
                where=str(file),
                fix="Export the model again, or remove the file: it is then made from inference.json.",
                code="graph-damaged",
            ) from error

    def run(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] -> float32 [N, D]."""
        with self._lock:  # share_inputs reads the array in place, which must be contiguous
            features: np.ndarray = self._request.infer([np.ascontiguousarray(x)], share_inputs=True)[0]
            return features
