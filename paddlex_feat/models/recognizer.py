"""The whole network: backbone -> neck -> head."""

from __future__ import annotations

from typing import Any

import paddle
from paddle import nn

from paddlex_feat.models import backbones
from paddlex_feat.models.heads import ArcMargin, BNNeck, LinearHead, LinearNeck
from paddlex_feat.models.pplcnetv2 import Block
from paddlex_feat.models.spec import NetworkSpec


class Recognizer(nn.Layer):
    """Embedding network with a classification head for training.

    forward: float32 [N, 3, H, W] -> the neck's output, float32 [N, embedding_size], not normalised.
    This is the feature of the losses, of evaluation and of the exported graph. `head` is None where features are all
    that is wanted: of many classes it is most of the network.
    """

    def __init__(self, backbone: nn.Layer, neck: nn.Layer, head: nn.Layer | None):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.neck(self.backbone(x))

    def logits(self, features: paddle.Tensor, labels: paddle.Tensor | None = None) -> paddle.Tensor:
        """Class logits, float32 [N, C], of the features that `forward` returned.

        labels: int64 [N]; an angular-margin head needs them in training.
        """
        assert self.head is not None, "a network without a head has features alone"
        return self.head(features, labels)

    def set_inference_weights(self, state: dict[str, Any], fuse: bool = True) -> None:
        """Take the weights of a trained network and go to evaluation mode, with or without fused branches.

        For a network of its own beside the one in training: fused branches do not train.
        """
        self.set_state_dict({name: state[name] for name in self.state_dict()})
        self.eval()
        for layer in self.sublayers():
            if isinstance(layer, Block):
                layer.fuse() if fuse else layer.unfuse()


def build(spec: NetworkSpec, num_classes: int | None) -> Recognizer:
    """The network with freshly initialised weights and a head of `num_classes`, or none.

    Raises ConfigError or DependencyError for a backbone that cannot be built.
    """
    size = spec.embedding_size
    backbone = backbones.build(spec)
    neck = BNNeck(size) if spec.neck == "bn" else LinearNeck(size)
    if num_classes is None:
        return Recognizer(backbone, neck, None)
    if spec.head == "linear":
        return Recognizer(backbone, neck, LinearHead(size, num_classes))
    return Recognizer(backbone, neck, ArcMargin(size, num_classes, spec.arc_margin, spec.arc_scale))
