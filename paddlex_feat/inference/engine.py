"""Paddle Inference on an exported directory. Nothing of training is imported."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from paddlex_feat.errors import WeightsError
from paddlex_feat.inference.info import PREFIX
from paddlex_feat.runtime import cpu_threads

_ONEDNN_SHAPES = 4  # input shapes whose oneDNN set-up is kept: full batches and the last one


class Engine(Protocol):
    """A graph, ready to run."""

    def run(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] -> float32 [N, D], any N."""


def _graph_files(folder: Path) -> tuple[str, str]:
    parameters = folder / f"{PREFIX}.pdiparams"
    for suffix in (".json", ".pdmodel"):  # the current format first, then the older one
        graph = folder / f"{PREFIX}{suffix}"
        if graph.is_file() and parameters.is_file():
            return str(graph), str(parameters)
    raise WeightsError(
        f"{PREFIX}.json (or .pdmodel) and {PREFIX}.pdiparams are not both there.",
        where=str(folder),
        fix="Export the model again.",
    )


class PaddleEngine:
    """An exported graph, ready to run.

    It lives on a thread of its own: Paddle keeps oneDNN's settings per thread, and a graph that
    runs in the caller's would halve the speed of a training that goes on there.

    Args:
        folder: inference directory.
        device: "cpu" or "gpu:N".
        threads: CPU threads; 0 takes OMP_NUM_THREADS, else all processors.
    """

    def __init__(self, folder: Path, device: str = "cpu", threads: int = 0):
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._threads = cpu_threads(threads)
        self._predictor = self._thread.submit(_create_predictor, folder, device, self._threads).result()

    def run(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] -> float32 [N, D]."""
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


def _create_predictor(folder: Path, device: str, threads: int) -> Any:
    from paddle import inference

    graph, parameters = _graph_files(folder)
    config = inference.Config(graph, parameters)
    if device.startswith("gpu"):
        config.enable_use_gpu(256, int(device.partition(":")[2] or 0))
    else:
        config.disable_gpu()
        config.enable_mkldnn()
        config.set_mkldnn_cache_capacity(_ONEDNN_SHAPES)
        config.set_cpu_math_library_num_threads(threads)
    if graph.endswith(".json"):
        config.enable_new_ir()
        config.enable_new_executor()
    config.set_optimization_level(3)
    config.disable_glog_info()
    try:
        return inference.create_predictor(config)
    except Exception as error:  # Paddle reports a damaged file by many exception types
        raise WeightsError(
            f"Paddle cannot load the graph ({type(error).__name__}).",
            where=graph,
            fix="Export the model again; an official one is fetched again once its folder is deleted.",
        ) from error
