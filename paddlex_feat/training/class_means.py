"""Class vectors that start at the mean features of their classes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from paddlex_feat.config.parts import HasClassVectors
from paddlex_feat.errors import ConfigError
from paddlex_feat.inference.extractor import unit_rows
from paddlex_feat.training.cached_features import CachedFeatures


def class_means(cached: CachedFeatures, num_classes: int, seed: int) -> np.ndarray:
    """Directions of the mean unit feature of each class: float32 [num_classes, D], unit rows.

    A class without images, or whose features cancel out, gets a random direction.
    """
    views, _, dim = cached.features.shape
    sums = np.zeros((num_classes, dim), np.float64)
    for view in range(views):
        np.add.at(sums, cached.labels, unit_rows(cached.features[view]))
    empty = np.linalg.norm(sums, axis=1) < 1e-6
    sums[empty] = np.random.default_rng((seed, 5)).normal(size=(int(empty.sum()), dim))
    return unit_rows(sums.astype(np.float32))


def start_at_means(layers: Iterable[object], means: np.ndarray) -> None:
    """Hand the means, float32 [C, D], to every head, classifier and loss that has class vectors.

    Raises:
        ConfigError: none of them has.
    """
    found = [layer for layer in layers if isinstance(layer, HasClassVectors)]
    if not found:
        raise ConfigError(
            "Neither the head nor a loss has class vectors that could start at the classes' mean features.",
            where="Train.init_head=class_means",
            fix="Use Train.init_head=random, or another Model.head.",
            code="class-means-unused",
        )
    for layer in found:
        layer.set_class_means(means)
