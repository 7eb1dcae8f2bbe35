"""The whole network: backbone -> neck -> head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import paddle
from paddle import nn

from paddlex_feat.errors import ConfigError
from paddlex_feat.models.heads import BNNeck, LinearHead
from paddlex_feat.models.pplcnetv2 import Block, PPLCNetV2ShiTu


class Recognizer(nn.Layer):
    """Embedding network with a classification head for training.

    forward: float32 [N, 3, H, W] -> the neck's output, float32 [N, 512], not normalised.
    This is the feature of the losses, of evaluation and of the exported graph.
    """

    def __init__(self, backbone: nn.Layer, neck: nn.Layer, head: nn.Layer):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.neck(self.backbone(x))

    def logits(self, features: paddle.Tensor) -> paddle.Tensor:
        """Class logits, float32 [N, C], of the features that `forward` returned."""
        return self.head(features)

    def set_inference_weights(self, state: dict[str, Any], fuse: bool = True) -> None:
        """Take the weights of a trained network and go to evaluation mode, with or without fused branches.

        For a network of its own beside the one in training: fused branches do not train.
        """
        self.set_state_dict(state)
        self.eval()
        for layer in self.sublayers():
            if isinstance(layer, Block):
                layer.fuse() if fuse else layer.unfuse()


def _pp_shituv2_rec(num_classes: int) -> Recognizer:
    return Recognizer(PPLCNetV2ShiTu(embedding_size=512), BNNeck(512), LinearHead(512, num_classes))


NETWORKS: dict[str, Callable[[int], Recognizer]] = {"PP-ShiTuV2_rec": _pp_shituv2_rec}


def build(name: str, num_classes: int) -> Recognizer:
    """The network `name` with freshly initialised weights and a head of `num_classes`.

    Raises ConfigError for a model that has no network here.
    """
    if name not in NETWORKS:
        raise ConfigError(
            f"The network of {name} is not part of this version.",
            where="Global.model",
            fix=f"Networks that can be trained, evaluated and exported: {', '.join(NETWORKS)}.",
        )
    return NETWORKS[name](num_classes)
