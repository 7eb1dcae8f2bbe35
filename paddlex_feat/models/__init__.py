"""Networks: backbones, necks, heads, their weights. Importing this room does not import Paddle."""

from paddlex_feat.models.registry import BACKBONES, HEADS, BackboneSpec, HeadSpec
from paddlex_feat.models.spec import NetworkSpec

__all__ = ["BACKBONES", "HEADS", "BackboneSpec", "HeadSpec", "NetworkSpec"]
