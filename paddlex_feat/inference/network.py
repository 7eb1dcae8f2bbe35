"""A network itself as a feature extractor: on a GPU nothing has to be exported to be fast."""

from __future__ import annotations

import numpy as np
import paddle

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.inference.extractor import unit_rows
from paddlex_feat.models.recognizer import Recognizer


class NetworkExtractor:
    """Pixels to unit features by the dynamic graph, on Paddle's current device.

    Args:
        network: filled, or to be filled by `load`, and not one in training: it goes to evaluation mode and its
            branches are fused.
        amp_dtype: "float16" or "bfloat16" computes with autocast (level O1); None in float32.
        raw: give the network's own output, not unit rows.
    """

    def __init__(self, network: Recognizer, preprocess: Preprocess, amp_dtype: str | None = None, *, raw: bool = False):
        network.set_inference_weights(network.state_dict())
        self.preprocess = preprocess
        self._network = network
        self._amp_dtype = amp_dtype
        self._raw = raw
        self._factor, self._offset = (paddle.to_tensor(v.reshape(1, 3, 1, 1)) for v in preprocess.affine())

    def load(self, weights: dict[str, paddle.Tensor]) -> None:
        """Take other weights, float32 by name, of which the head's are not needed; they are copied on their device."""
        with paddle.no_grad():
            for name, tensor in self._network.state_dict().items():
                paddle.assign(weights[name], tensor)
        self._network.set_inference_weights(self._network.state_dict())

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3], RGB, already resized -> float32 [N, D], rows of unit length unless `raw`."""
        with paddle.no_grad():
            x = paddle.to_tensor(images).transpose([0, 3, 1, 2]).astype("float32") * self._factor + self._offset
            with paddle.amp.auto_cast(self._amp_dtype is not None, dtype=self._amp_dtype or "float16"):
                # The class's own forward: an exporter replaces the object's by its captured graph.
                features = type(self._network).forward(self._network, x)
        rows = features.astype("float32").numpy()
        return rows if self._raw else unit_rows(rows)
