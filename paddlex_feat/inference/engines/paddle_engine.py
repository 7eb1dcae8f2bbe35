"""Paddle Inference on an inference directory. Nothing of training is imported."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.errors import ConfigError, DeviceError, WeightsError, out_of_memory
from paddlex_feat.inference.engines.graph_check import check_graph_operators
from paddlex_feat.inference.engines.parameter_check import check_params_complete
from paddlex_feat.inference.engines.spec import CPU_MICRO_BATCH, EngineOptions
from paddlex_feat.inference.model_info import PREFIX
from paddlex_feat.runtime.cpu import cpu_threads
from paddlex_feat.runtime.device import resolve_device
from paddlex_feat.runtime.gpus import require_dtype
from paddlex_feat.runtime.malloc import keep_freed_memory
from paddlex_feat.runtime.paddle_import import prepare_paddle

_ONEDNN_SHAPES = 4  # input shapes whose oneDNN set-up is kept: full pieces and the last one


def graph_files(folder: Path) -> tuple[Path, Path]:
    """Paddle's graph and parameters in an inference directory. Raises WeightsError if one is missing."""
    parameters = folder / f"{PREFIX}.pdiparams"
    for suffix in (".json", ".pdmodel"):  # the current format first, then the older one
        graph = folder / f"{PREFIX}{suffix}"
        if graph.is_file() and parameters.is_file():
            return graph, parameters
    raise WeightsError(
        f"{PREFIX}.json (or .pdmodel) or {PREFIX}.pdiparams is missing.",
        where=str(folder),
        fix="Export the model again.",
        code="graph-missing",
    )


class PaddleEngine:
    """An inference directory on Paddle Inference.

    It has a thread of its own: Paddle keeps oneDNN's settings per thread, and a graph that
    runs in the caller's thread would halve the speed of a training that continues there.

    Args:
        folder: inference directory.
        options: how to run it.

    Raises WeightsError, DeviceError, DependencyError, OutOfMemoryError, and ConfigError for fp16 on a CPU.
    """

    name = "paddle"

    def __init__(self, folder: Path, options: EngineOptions):
        precision = options.precision
        prepare_paddle(options.threads)
        device = resolve_device(options.device).split(",")[0]
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
        self._threads = cpu_threads(options.threads)
        resolved = replace(options, device=device, threads=self._threads)
        self._predictor = self._thread.submit(_create_predictor, folder, resolved).result()

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
        features: np.ndarray = predictor.get_output_handle(predictor.get_output_names()[0]).copy_to_cpu()
        return features


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
            "Paddle does not compute in fp16 on a CPU.",
            where="precision",
            fix="Use fp32 or bf16, or a GPU.",
            code="fp16-on-cpu",
        )
    # Without the instructions Paddle would silently compute in fp32, or emulate them slowly.
    if precision == "bf16" and not paddle.base.core.supports_bfloat16_fast_performance():
        raise DeviceError(
            "This processor has no bfloat16 instructions.",
            where="precision",
            fix="Use precision fp32.",
            code="precision-unsupported",
        )


def _create_predictor(folder: Path, options: EngineOptions) -> Any:
    """Load the graph. The options are resolved: device "cpu" or "gpu:N", a number of threads."""
    from paddle import inference

    graph, parameters = graph_files(folder)
    check_graph_operators(graph, options.trust_graph)
    check_params_complete(parameters)
    config = inference.Config(str(graph), str(parameters))
    if options.device.startswith("gpu"):
        # Written by Paddle's documentation; no GPU was there to run fp16 and bf16 on.
        modes = {"fp32": "Float32", "fp16": "Half", "bf16": "Bfloat16"}
        mode = getattr(inference.PrecisionType, modes[options.precision])
        config.enable_use_gpu(256, int(options.device.partition(":")[2] or 0), mode)
    else:
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_mkldnn_cache_capacity(_ONEDNN_SHAPES)
        config.set_cpu_math_library_num_threads(options.threads)
        if options.precision == "bf16":
            config.enable_mkldnn_bfloat16()
    if graph.suffix == ".json":
        config.enable_new_ir()
        config.enable_new_executor()
    config.set_optimization_level(3)
    config.disable_glog_info()
    try:
        return inference.create_predictor(config)
    except Exception as error:  # Paddle reports a damaged file by many exception types
        no_memory = out_of_memory(error, str(graph), "Use a smaller model or another device.")
        if no_memory:
            raise no_memory from error
        raise WeightsError(
            f"Paddle cannot load the graph ({type(error).__name__}).",
            where=str(graph),
            fix="Export the model again; an official one is fetched again once its folder is deleted.",
            code="graph-damaged",
        ) from error
