"""What a head's logits are as plain arithmetic, for a classifier that computes some of its classes at a time."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from paddlex_feat.config.base import Section
from paddlex_feat.models.head_params import CosFaceParams, CosineParams, SubCenterArcFaceParams
from paddlex_feat.models.spec import NetworkSpec

MEANS_SCALE = 16.0  # of the logits of a linear head that starts at class means
CENTER_NOISE = 0.05  # length of what makes the centres of a class differ that start at its mean


@dataclass(frozen=True)
class ClassScores:
    """Logits are `scale` times scores: the products of feature and class vector, or their cosines.

    The formulas are those of the layers in `models.heads`, of which the equation and its source are there.

    Attributes:
        unit: whether scores are cosines, with a margin for the own class.
        scale: factor on the scores before the softmax.
        angle: what is added to the angle to the own class, in radians.
        shift: what is taken from the cosine of the own class.
        centers: K, vectors of each class, of which the nearest counts.
        sine_offset: added to the squared sine of the own angle, and the least that it may be.
        std: standard deviation of random vectors; None: as Xavier normal.
    """

    unit: bool = True
    scale: float = 1.0
    angle: float = 0.0
    shift: float = 0.0
    centers: int = 1
    sine_offset: tuple[float, float] = (0.0, 1e-12)
    std: float | None = None

    def own(self, cos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The score of the own class and its derivative, float32 [N] each, of its cosine (or product) [N]."""
        if not self.angle:
            return cos - np.float32(self.shift), np.ones_like(cos)
        offset, least = self.sine_offset
        square = 1 - cos * cos + np.float32(offset)
        sine = np.sqrt(np.maximum(square, np.float32(least)))
        cos_margin, sin_margin = np.float32(math.cos(self.angle)), np.float32(math.sin(self.angle))
        slope = cos_margin + np.where(square > least, sin_margin * cos / sine, 0)
        within = cos > -cos_margin  # else the angle would pass pi, and the cosine would rise again
        value = np.where(within, cos * cos_margin - sine * sin_margin, cos - np.float32(self.angle) * sin_margin)
        return value.astype(np.float32), np.where(within, slope, 1).astype(np.float32)

    def start(self, means: np.ndarray, noise: np.random.Generator) -> np.ndarray:
        """Class vectors, float32 [C * K, D], of the classes' mean features [C, D] of length 1, as the heads start."""
        dim = means.shape[1]
        if not self.unit:
            return means * np.float32(MEANS_SCALE / math.sqrt(dim))
        vectors = np.repeat(means, self.centers, axis=0)
        if self.centers > 1:  # equal centres would stay equal
            vectors += noise.standard_normal(vectors.shape, np.float32) * np.float32(CENTER_NOISE / math.sqrt(dim))
        return vectors

    def deviation(self, classes: int, dim: int) -> float:
        """Standard deviation of random class vectors, of `classes` in `dim` numbers each."""
        return self.std if self.std is not None else math.sqrt(2 / (dim + classes * self.centers))


def linear(spec: NetworkSpec, params: Section) -> ClassScores:
    """Of the head linear."""
    return ClassScores(unit=False, std=0.001)


def arc_margin(spec: NetworkSpec, params: Section) -> ClassScores:
    """Of the head arc_margin."""
    return ClassScores(scale=spec.arc_scale, angle=spec.arc_margin, sine_offset=(1e-6, 1e-7))


def cosine(spec: NetworkSpec, params: CosineParams) -> ClassScores:
    """Of the head cosine."""
    return ClassScores(scale=1 / params.temperature)


def cosface(spec: NetworkSpec, params: CosFaceParams) -> ClassScores:
    """Of the head cosface."""
    return ClassScores(scale=params.scale, shift=params.margin)


def subcenter_arcface(spec: NetworkSpec, params: SubCenterArcFaceParams) -> ClassScores:
    """Of the head subcenter_arcface."""
    return ClassScores(scale=params.scale, angle=params.margin, centers=params.sub_centers)
