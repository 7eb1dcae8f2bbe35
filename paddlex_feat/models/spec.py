"""What a network is made of: plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is made of; the defaults are PP-ShiTuV2_rec.

    Attributes:
        backbone: a name of models.registry.BACKBONES, or "paddleclas/NAME".
        params: own keys of a backbone from another package.
        embedding_size: length of a feature.
        dropout: of PPLCNetV2_base_ShiTu.
        pooling: "mean"; "gem", of the convolutional backbones; or "cls", of CLIP_vit.
        patch_size: of CLIP_vit, in pixels; see CLIPViT for this and the next five.
        width: of CLIP_vit.
        depth: of CLIP_vit.
        heads: of CLIP_vit.
        class_token: of CLIP_vit.
        activation: of CLIP_vit.
        neck: "bn" or "linear".
        head: a name of models.registry.HEADS.
        head_params: own keys of the head.
        arc_margin: of the head "arc_margin", in radians.
        arc_scale: of the head "arc_margin", a factor.
        head_sample: share of the classes that a step draws; None: the head is part of the network.
        input_size: side of an image, in pixels; CLIP_vit has a position for each patch.
    """

    backbone: str = "PPLCNetV2_base_ShiTu"
    params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    embedding_size: int = 512
    dropout: float = 0.2
    pooling: Literal["mean", "gem", "cls"] = "mean"
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    class_token: bool = False
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    neck: Literal["bn", "linear"] = "bn"
    head: str = "linear"
    head_params: Mapping[str, Any] = field(default_factory=dict, hash=False)
    arc_margin: float = 0.2
    arc_scale: float = 30.0
    head_sample: float | None = None
    input_size: int = 224
