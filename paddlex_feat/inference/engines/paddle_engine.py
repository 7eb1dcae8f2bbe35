"""What an engine is, and the first of them: Paddle Inference. Nothing of training is imported."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paddlex_feat.errors import ConfigError, DeviceError, WeightsError, out_of_memory
from paddlex_feat.inference.engines.graph_check import check_graph_operators
from paddlex_feat.inference.engines.parameter_check import check_params_complete
from paddlex_feat.inference.model_info import PREFIX
from paddlex_feat.runtime.cpu import cpu_threads
from paddlex_feat.runtime.device import resolve_device
from paddlex_feat.runtime.gpus import require_dtype
from paddlex_feat.runtime.malloc import keep_freed_memory
from paddlex_feat.runtime.paddle_import import prepare_paddle

# Images of a call on a CPU: what 64 images need between two layers does not fit in the processor's caches.
# At 224 px Paddle runs 8 at a time half as fast again as 64; OpenVINO and ONNX Runtime hardly differ.
CPU_MICRO_BATCH = 8
_ONEDNN_SHAPES = 4  # input shapes whose oneDNN set-up is kept: full pieces and the last one


class Engine(Protocol):
    """A graph, ready to run.

    Attributes:
        name: "paddle", "onnx" or "openvino".
        precision: "fp32", "bf16" or "fp16", in which it computes; what goes in and comes out is float32.
        micro_batch: images that it takes best at a time; 0: all there are.
        device: "cpu" or "gpu:N".
    """

    name: str
    device: str
    precision: str
    micro_batch: int

    def run(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] -> float32 [N, D], any N. The result is the caller's own."""


def graph_files(folder: Path) -> tuple[Path, Path]:
    """Paddle's graph and parameters in an inference directory. Raises WeightsError if they are not both there."""
    parameters = folder / f"{PREFIX}.pdiparams"
    for suffix in (".json", ".pdmodel"):  # the current format first, then the older one
        graph = folder / f"{PREFIX}{suffix}"
        if graph.is_file() and parameters.is_file():
            return graph, parameters
    raise WeightsError(
        f"{PREFIX}.json (or .pdmodel) and {PREFIX}.pdiparams are not both there.",
        where=str(folder),
        fix="Export the model again.",
    )


class PaddleEngine:
    """An inference directory on Paddle Inference.

    It lives on a thread of its own: Paddle keeps oneDNN's settings per thread, and a graph that
    runs in the caller's would halve the speed of a training that goes on there.

    Args:
        folder: inference directory.
        device: "auto", "cpu" or "gpu:N".
        threads: CPU threads; 0 takes OMP_NUM_THREADS, else the physical cores.
        precision: fp32, bf16, or on a GPU fp16.

    Raises WeightsError, DeviceError, DependencyError, OutOfMemoryError, and ConfigError for fp16 on a CPU.
    """

    name = "paddle"

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 0, precision: str = "fp32"):
        prepare_paddle(threads)
        device = resolve_device(device).split(",")[0]
        on_cpu = device.startswith("cpu")
        if on_cpu:
            _require_on_cpu(precision)
            keep_freed_memory()
        elif precision != "fp32":
            dtype = {"fp16": "float16", "bf16": "bfloat16"}[precision]
            require_dtype(device, dtype, "precision", "Use precision fp32.")
        self.device = "cpu" if on_cpu else device
        self.precision = precision
        self.micro_batch = CPU_MICRO_BATCH if on_cpu else 0
        self._renewing = threading.Lock()
        self._start_thread()
        self._threads = cpu_threads(threads)
        self._predictor = self._thread.submit(_create_predictor, folder, device, self._threads, precision).result()

    def _start_thread(self) -> None:
        # A new thread's current GPU is 0, and what asks CUDA for memory there creates a context on that one too.
        self._thread = ThreadPoolExecutor(1, "engine", _use_device, (self.device,))
        self._process = os.getpid()

    def run(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] -> float32 [N, D]."""
        if self._process != os.getpid():  # os.fork copies the predictor, and no thread
            with self._renewing:
                if self._process != os.getpid():
                    self._start_thread()
        return self._thread.submit(self._run, x).result()

    def _run(self, x: np.ndarray) -> np.ndarray:
        import paddle

        predictor = self._predictor
        predictor.get_input_handle(predictor.get_input_names()[0]).copy_from_cpu(x)
        predictor.run()
        # Paddle Inference leaves the whole process's matrix library at one thread: a training that goes on
        # would be slower, and would round otherwise than one that was resumed and has not evaluated yet.
        paddle.base.core.set_num_threads(self._threads)
        return predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()


def _use_device(device: str) -> None:
    """Make a GPU the current one of this thread. Paddle's set_device would change it for the other threads too."""
    if not device.startswith("gpu"):
        return
    import paddle

    if hasattr(paddle.base.core, "set_cuda_current_device_id"):
        paddle.base.core.set_cuda_current_device_id(int(device.partition(":")[2]))


def _require_on_cpu(precision: str) -> None:
    import paddle

    if precision == "fp16":
        raise ConfigError(
            "Paddle does not compute in fp16 on a CPU.", where="precision", fix="Use fp32 or bf16, or a GPU."
        )
    # Without the instructions Paddle would compute in fp32 and not say so, or slowly in their place.
    if precision == "bf16" and not paddle.base.core.supports_bfloat16_fast_performance():
        raise DeviceError("This processor has no bfloat16 instructions.", where="precision", fix="Use precision fp32.")


def _create_predictor(folder: Path, device: str, threads: int, precision: str) -> Any:
    from paddle import inference

    files = graph_files(folder)
    check_graph_operators(files[0])
    check_params_complete(files[1])
    graph, parameters = map(str, files)
    config = inference.Config(graph, parameters)
    if device.startswith("gpu"):
        # Written by Paddle's documentation; no GPU was there to run fp16 and bf16 on.
        modes = {"fp32": "Float32", "fp16": "Half", "bf16": "Bfloat16"}
        mode = getattr(inference.PrecisionType, modes[precision])
        config.enable_use_gpu(256, int(device.partition(":")[2] or 0), mode)
    else:
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_mkldnn_cache_capacity(_ONEDNN_SHAPES)
        config.set_cpu_math_library_num_threads(threads)
        if precision == "bf16":
            config.enable_mkldnn_bfloat16()
    if graph.endswith(".json"):
        config.enable_new_ir()
        config.enable_new_executor()
    config.set_optimization_level(3)
    config.disable_glog_info()
    try:
        return inference.create_predictor(config)
    except Exception as error:  # Paddle reports a damaged file by many exception types
        lacking = out_of_memory(error, graph, "Use a smaller model or another device.")
        if lacking:
            raise lacking from error
        raise WeightsError(
            f"Paddle cannot load the graph ({type(error).__name__}).",
            where=graph,
            fix="Export the model again; an official one is fetched again once its folder is deleted.",
        ) from error
