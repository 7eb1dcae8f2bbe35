"""Keys of the heads, in Model.head_params. Importing this module does not import Paddle."""

from __future__ import annotations

from paddlex_feat.config.base import Section, key


class CosineParams(Section):
    """Keys of cosine."""

    temperature: float = key(0.05, "Divisor of the cosines.", gt=0)


class CosFaceParams(Section):
    """Keys of cosface."""

    margin: float = key(0.35, "Taken from the cosine of the own class.", "cosine", ge=0, le=2)
    scale: float = key(64.0, "Scale of the logits.", gt=0)


class SubCenterArcFaceParams(Section):
    """Keys of subcenter_arcface."""

    margin: float = key(0.5, "Added to the angle to the own class.", "radians", ge=0, lt=1.57)
    scale: float = key(64.0, "Scale of the logits.", gt=0)
    sub_centers: int = key(3, "Centres a class.", ge=1, le=64)
