"""The whole network: backbone -> neck -> head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import paddle
from paddle import nn

from paddlex_feat.config.base import Section
from paddlex_feat.config.parts import build_part, read_params
from paddlex_feat.errors import ConfigError
from paddlex_feat.models.heads import BNNeck, LinearNeck
from paddlex_feat.models.registry import HEADS, find_backbone
from paddlex_feat.models.spec import NetworkSpec


@runtime_checkable
class Fusable(Protocol):
    """A layer whose training branches can be folded into one for inference."""

    def fuse(self) -> None:
        """Fold the branches."""

    def unfuse(self) -> None:
        """Compute with the branches again."""


class Recognizer(nn.Layer):
    """Embedding network with a classification head for training.

    forward: float32 [N, 3, H, W] -> the neck's output, float32 [N, embedding_size], not normalized.
    This is the feature of the losses, of evaluation and of the exported graph. `head` is None where only features are
    needed: with many classes it is most of the network.
    """

    def __init__(self, backbone: nn.Layer, neck: nn.Layer, head: nn.Layer | None):
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.head = head

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Features, float32 [N, embedding_size], of images float32 [N, 3, H, W]; not normalized."""
        return self.neck(self.backbone(x))

    def logits(self, features: paddle.Tensor, labels: paddle.Tensor | None = None) -> paddle.Tensor:
        """Class logits, float32 [N, C], of the features that `forward` returned.

        labels: int64 [N]; an angular-margin head needs them in training.
        """
        assert self.head is not None, "a network without a head has features alone"
        return self.head(features, labels)

    def set_inference_weights(self, state: dict[str, Any], fuse: bool = True) -> None:
        """Load the weights of a trained network and switch to evaluation mode, with or without fused branches.

        For another network than the one in training: fused branches do not train.
        """
        self.set_state_dict({name: state[name] for name in self.state_dict()})
        self.eval()
        for layer in self.sublayers():
            if isinstance(layer, Fusable):
                if fuse:
                    layer.fuse()
                else:
                    layer.unfuse()


def build(spec: NetworkSpec, num_classes: int | None) -> Recognizer:
    """Build a network with fresh weights and a head of `num_classes`, or none.

    Raises:
        ConfigError: an unknown name or key, or a backbone that cannot be built.
        DependencyError: a package that is needed cannot be imported, or what it gives cannot be used.
    """
    backbone = find_backbone(spec.backbone)
    if spec.pooling not in backbone.poolings:
        raise ConfigError(
            f"The backbone {backbone.name} has no pooling {spec.pooling}.",
            where="Model.pooling",
            fix=f"Use {' or '.join(backbone.poolings)}.",
            code="pooling-unknown",
        )
    params = _params(backbone.params, spec.params, "Model.params")
    body = build_part("backbone", backbone.name, backbone.build, nn.Layer, spec, params)
    neck = BNNeck(spec.embedding_size) if spec.neck == "bn" else LinearNeck(spec.embedding_size)
    if num_classes is None:
        return Recognizer(body, neck, None)
    head = HEADS.get(spec.head)
    params = _params(head.params, spec.head_params, "Model.head_params")
    return Recognizer(body, neck, build_part("head", head.name, head.build, nn.Layer, spec, num_classes, params))


def _params(section: type[Section], values: Mapping[str, Any], where: str) -> Section:
    params, problems = read_params(section, values, where)
    if params is None:
        raise ConfigError(
            "; ".join(f"{p.key}: {p.message}" for p in problems),
            where=where,
            fix="Correct the keys named.",
            code="part-params",
        )
    return params
