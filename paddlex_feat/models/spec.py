"""What a network is made of: plain data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class NetworkSpec:
    """What a network is made of; the defaults are PP-ShiTuV2_rec.

    Attributes:
        backbone: a name of models.backbones. embedding_size: channels of the feature.
        dropout: of PPLCNetV2_base_ShiTu.
        patch_size, width, depth, heads, class_token: of CLIP_vit, see CLIPViT.
        arc_margin, arc_scale: of the head "arc_margin", in radians and as a factor.
        input_size: pixels of a side; CLIP_vit has as many positions as patches fit in.
    """

    backbone: str = "PPLCNetV2_base_ShiTu"
    embedding_size: int = 512
    dropout: float = 0.2
    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    class_token: bool = False
    neck: Literal["bn", "linear"] = "bn"
    head: Literal["linear", "arc_margin"] = "linear"
    arc_margin: float = 0.2
    arc_scale: float = 30.0
    input_size: int = 224
