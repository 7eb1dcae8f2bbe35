"""Pixels to features by an inference directory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import FeatError, WeightsError, out_of_memory
from paddlex_feat.inference.engines import EngineOptions
from paddlex_feat.inference.engines.create import create_engine
from paddlex_feat.inference.model_info import read_info


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Divide every row by its L2 norm; a zero row stays zero. float32 [N, D] -> float32 [N, D]."""
    # In float64, where no square of a float32 overflows or vanishes.
    norms = np.sqrt(np.einsum("nd,nd->n", features, features, dtype=np.float64))[:, None]
    with np.errstate(invalid="ignore"):  # of rows that are not finite, which the caller reports
        return (features / np.where(norms > 0, norms, 1)).astype(np.float32)


_SMALLER = (
    "Lower the batch size ({} images were computed together): Predict.batch_size, Evaluate.batch_size, or in Python "
    "batch_size."
)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip(" -")]
    return next((line for line in lines if "Error" in line or "(" in line), lines[0] if lines else "no reason")[:200]


class FeatureExtractor:
    """Pixels to features by one inference directory: pre-processing, graph, L2 normalisation.

    Args:
        folder: inference directory.
        device: see `EngineOptions`, as for threads, engine, precision and trust_graph.
        unit: give unit rows even if inference.yml does not ask for them.
        raw: give the graph's own output, whatever inference.yml asks for.
    """

    def __init__(
        self,
        folder: Path,
        device: str = "cpu",
        threads: int = 0,
        unit: bool = False,
        engine: str = "paddle",
        precision: str = "fp32",
        trust_graph: bool = False,
        raw: bool = False,
    ):
        self.folder = folder
        self.info = read_info(folder)
        self._unit = not raw and (unit or self.info.normalise_features)
        self.engine = create_engine(folder, EngineOptions(engine, precision, threads, device, trust_graph))
        self._process = os.getpid()
        self._running: list[None] = []  # an entry for each thread that runs the engine

    @property
    def preprocess(self) -> Preprocess:
        """How the images are made ready."""
        return self.info.preprocess

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3], RGB, already resized, N at least 1 -> float32 [N, D].

        Raises WeightsError if the graph fails, or gives anything but a row for each image, OutOfMemoryError.
        Rows have unit length if inference.yml asks for NormalizeFeatures, as all of ours do, or `unit` does.
        """
        features = self.raw(images)
        return unit_rows(features) if self._unit else features

    def raw(self, images: np.ndarray) -> np.ndarray:
        """As a call, but the features are as the graph gives them, never normalized."""
        size = self.engine.micro_batch or len(images)
        parts = [images[i : i + size] for i in range(0, len(images), size)]
        return np.concatenate([self._run(part) for part in parts])

    def _require_usable(self) -> None:
        """Raise FeatError in a forked process if the engine ran at that moment, or computes on a GPU."""
        if self._process != os.getpid():
            if self.engine.device != "cpu":  # a CUDA context does not survive a fork
                raise FeatError(
                    f"This process was forked after the model was loaded on {self.engine.device}; the model cannot "
                    "use the GPU here.",
                    where=str(self.folder),
                    fix="Start processes with multiprocessing.get_context('spawn'), or fork before Paddle has used the "
                    "GPU, and make the model in each process.",
                    code="forked-gpu",
                )
            if self._running:
                raise FeatError(
                    "This process was forked while the model was predicting; the engine cannot continue here.",
                    where=str(self.folder),
                    fix="Make the model in this process, fork when no prediction is running, or start processes with "
                    "multiprocessing.get_context('spawn').",
                    code="forked-while-running",
                )
            self._process = os.getpid()

    def _run(self, images: np.ndarray) -> np.ndarray:
        x = self.preprocess.normalise(images)
        self._require_usable()
        self._running.append(None)
        try:
            rows = self.engine.run(x)
        except Exception as error:  # every engine has exceptions of its own
            no_memory = out_of_memory(error, str(self.folder), _SMALLER.format(len(x)))
            if no_memory:
                raise no_memory from error
            raise WeightsError(
                f"The graph cannot be run on input of shape {x.shape} ({type(error).__name__}: {_first_line(error)}).",
                where=str(self.folder),
                fix="Export the model again; its graph and inference.yml must belong together.",
                code="graph-failed",
            ) from error
        finally:
            self._running.pop()
        if rows.dtype.kind != "f" or rows.ndim != 2 or len(rows) != len(images):
            raise WeightsError(
                f"The graph returns {rows.dtype} of shape {rows.shape} for {len(images)} images.",
                where=str(self.folder),
                fix="Use a network that returns one feature, a row of floats, for each image.",
                code="graph-output",
            )
        return rows
