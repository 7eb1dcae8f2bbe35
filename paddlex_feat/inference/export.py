"""From weights to an inference directory, and the proof that both say the same."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import paddle
import yaml

from paddlex_feat.errors import WeightsError
from paddlex_feat.inference.extractor import FeatureExtractor, unit_rows
from paddlex_feat.inference.info import PREFIX
from paddlex_feat.models.recognizer import Recognizer
from paddlex_feat.pipeline.preprocess import Preprocess


class Exporter:
    """Writes inference directories of one network.

    The graph is captured once; later calls exchange its weights, ten times faster.

    Args:
        network: a network for this purpose alone: its branches are fused.
        model_name: goes into inference.yml, where PaddleX checks it.
        preprocess: goes into inference.yml.
    """

    def __init__(self, network: Recognizer, model_name: str, preprocess: Preprocess):
        self._network = network
        self._name = model_name
        self._preprocess = preprocess
        self._graph: Any = None

    def write(self, state: dict[str, Any], folder: Path) -> None:
        """Write inference.json, inference.pdiparams and inference.yml of the weights `state`.

        The graph takes `x`, float32 [-1, 3, S, S], and returns features that are not normalised.
        """
        self._network.set_inference_weights(state)
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.redirect_stdout(io.StringIO()):
            if self._graph is None:
                size = self._preprocess.size
                spec = [paddle.static.InputSpec([None, 3, size, size], "float32", "x")]
                self._graph = paddle.jit.to_static(self._network, input_spec=spec, full_graph=True)
            paddle.jit.save(self._graph, str(folder / PREFIX))
        content = {
            "Global": {"model_name": self._name},
            "PreProcess": {"transform_ops": self._preprocess.to_ops()},
            "PostProcess": {"NormalizeFeatures": None},
        }
        (folder / f"{PREFIX}.yml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    def largest_difference(
        self, state: dict[str, Any], folder: Path, images: np.ndarray, device: str, threads: int = 0
    ) -> float:
        """How far the inference directory `folder` is from the weights `state` on the same images.

        The other side is the dynamic graph in evaluation mode with its branches not fused, so an
        error of fusing shows too.

        images: uint8 [N, S, S, 3]. Returns the largest absolute difference of the unit features.
        """
        exported = FeatureExtractor(folder, device, threads)(images)
        self._network.set_inference_weights(state, fuse=False)
        with paddle.no_grad():
            # The class's own forward: the object's is the captured graph once something was written.
            features = type(self._network).forward(self._network, paddle.to_tensor(self._preprocess.normalise(images)))
            own = unit_rows(features.numpy())
        return float(np.abs(exported - own).max())


def require_agreement(difference: float, tolerance: float, folder: Path) -> None:
    """Raise WeightsError if an exported model answers differently from its weights."""
    if not difference <= tolerance:  # also catches NaN
        raise WeightsError(
            f"The exported model differs from the weights by {difference:.2e}, more than {tolerance:.0e}.",
            where=str(folder),
            fix="If that is acceptable, raise Export.tolerance; otherwise report the Paddle version.",
        )
