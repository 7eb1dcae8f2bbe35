"""Export weights to an inference directory, and compare the two."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import yaml

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import WeightsError, as_output_error
from paddlex_feat.fileio.atomic import require_disk_space
from paddlex_feat.inference.engines.graph_check import check_cpu_kernels
from paddlex_feat.inference.export.pdmodel import pdmodel_format
from paddlex_feat.inference.extractor import FeatureExtractor, unit_rows
from paddlex_feat.inference.model_info import DIMENSION, PREFIX
from paddlex_feat.models.recognizer import Recognizer
from paddlex_feat.runtime.gpus import exact_products

_GRAPH_BYTES = 2**20  # upper bound of a graph without its weights


class Exporter:
    """Writes inference directories of one network.

    The graph is captured once; later calls exchange its weights, ten times faster.

    Args:
        network: used by the exporter only: its weights are overwritten and its branches are fused.
        model_name: written to inference.yml, where PaddleX checks it.
        preprocess: written to inference.yml.
        any_size: the graph takes images of any size that the network supports; False: of `preprocess.size` only.
        pir: write inference.json, Paddle's current form; else inference.pdmodel.
        dimension: written to inference.yml, where features have fewer numbers than the model's name stands for.
    """

    def __init__(
        self,
        network: Recognizer,
        model_name: str,
        preprocess: Preprocess,
        any_size: bool = False,
        pir: bool = True,
        dimension: int | None = None,
    ):
        self._network = network
        self._name = model_name
        self._preprocess = preprocess
        self._size = None if any_size else preprocess.size
        self._pir = pir
        self._dimension = dimension
        self._graph: Any = None

    @property
    def network(self) -> Recognizer:
        """The network that the weights are written through; `write` and `differences` overwrite its weights."""
        return self._network

    def write(self, state: dict[str, Any], folder: Path) -> None:
        """Write inference.json (or .pdmodel), inference.pdiparams and inference.yml of the weights `state`.

        The graph takes `x`, float32 [-1, 3, S, S], and returns features that are not normalised.
        Raises OutputError, and WeightsError if Paddle cannot write the network in the older form, or if the graph
        would run on GPUs alone.
        """
        require_disk_space(folder, 4 * sum(math.prod(value.shape) for value in state.values()) + _GRAPH_BYTES)
        with as_output_error(folder):
            self._write(state, folder)

    def _write(self, state: dict[str, Any], folder: Path) -> None:
        self._network.set_inference_weights(state)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.nullcontext() if self._pir else pdmodel_format():
            if self._graph is None:
                spec = [paddle.static.InputSpec([None, 3, self._size, self._size], "float32", "x")]
                self._graph = paddle.jit.to_static(self._network, input_spec=spec, full_graph=True)
            paddle.jit.save(self._graph, str(folder / PREFIX))
        check_cpu_kernels(folder / f"{PREFIX}{'.json' if self._pir else '.pdmodel'}")
        (folder / f"{PREFIX}.pdiparams.info").unlink(missing_ok=True)  # of the older form; nothing reads it
        content = {
            "Global": {"model_name": self._name} | ({DIMENSION: self._dimension} if self._dimension else {}),
            "PreProcess": {"transform_ops": self._preprocess.to_ops()},
            "PostProcess": {"NormalizeFeatures": None},
        }
        (folder / f"{PREFIX}.yml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def largest_difference(
        self, state: dict[str, Any], folder: Path, images: np.ndarray, device: str, threads: int = 0
    ) -> float:
        """Compare the inference directory `folder` with the weights `state` on the same images.

        The weights are run by the dynamic graph in evaluation mode without fused branches, so that an
        error of fusing is found too.

        Args:
            state: weights by name.
            folder: inference directory.
            images: uint8 [N, S, S, 3].
            device: where the exported graph runs.
            threads: CPU threads; 0: the default.

        Returns the largest absolute difference of a unit feature.
        """
        return self.differences(state, folder, [images], device, threads, ["paddle"])["paddle"]

    def differences(
        self,
        state: dict[str, Any],
        folder: Path,
        batches: Sequence[np.ndarray],
        device: str,
        threads: int,
        forms: Iterable[str],
    ) -> dict[str, float]:
        """`largest_difference` of each form of the directory, over batches of different image sizes.

        Args:
            state: weights by name.
            folder: inference directory.
            batches: uint8 [N, S, S, 3] each.
            device: where Paddle's form runs; the others run on the CPU.
            threads: CPU threads; 0: the default.
            forms: names of engines.

        Returns form -> difference.
        """
        self._network.set_inference_weights(state, fuse=False)
        result = {}
        # With TF32, fused and unfused graphs round different operands: that difference would hide real errors.
        with exact_products():
            expected = [self._features_of_network(images) for images in batches]
            for form in forms:
                extract = FeatureExtractor(folder, device if form == "paddle" else "cpu", threads, engine=form)
                gaps = [np.abs(extract(images) - expected[i]).max() for i, images in enumerate(batches)]
                result[form] = float(np.max(gaps))  # NaN, if any is
        return result

    def _features_of_network(self, images: np.ndarray) -> np.ndarray:
        with paddle.no_grad():
            # The class's own forward: the object's is the captured graph once something was written.
            features = type(self._network).forward(self._network, paddle.to_tensor(self._preprocess.normalise(images)))
            return unit_rows(features.numpy())


def require_agreement(difference: float, tolerance: float, folder: Path, form: str = "paddle") -> None:
    """Raise WeightsError if the features of an exported form differ too much from those of the weights."""
    if not difference <= tolerance:  # also catches NaN
        raise WeightsError(
            f"The exported model ({form}) differs from the weights by {difference:.2e}, more than {tolerance:.0e}.",
            where=str(folder),
            fix="If that is acceptable, raise Export.tolerance; otherwise report the Paddle version.",
            code="export-differs",
        )
