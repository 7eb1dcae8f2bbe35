"""Counts, means and scatter of classes of features: all that the closed forms of `maps` need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ROWS = 4096  # features that are converted to float64 at a time


@dataclass(frozen=True)
class ClassStatistics:
    """Statistics of some classes; those of disjoint sets of classes can be merged.

    Attributes:
        counts: images of each class, float64 [C].
        means: mean feature of each class, float64 [C, D].
        within: sum over all images of the outer product of the deviation from the class's mean, float64 [D, D].
    """

    counts: np.ndarray
    means: np.ndarray
    within: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray, classes: np.ndarray) -> ClassStatistics:
        """Compute the statistics of features, float [N, D], N at least 1, of the classes int [N]."""
        found, index, counts = np.unique(classes, return_inverse=True, return_counts=True)
        dim = features.shape[1]
        means = np.zeros((len(found), dim))
        np.add.at(means, index, features)
        means /= counts[:, None]
        within = np.zeros((dim, dim))
        for first in range(0, len(features), ROWS):
            deviation = features[first : first + ROWS] - means[index[first : first + ROWS]]
            within += deviation.T @ deviation
        return cls(counts.astype(np.float64), means, within)

    @classmethod
    def merge(cls, parts: Sequence[ClassStatistics]) -> ClassStatistics:
        """Merge the statistics of disjoint sets of classes, at least one."""
        return cls(
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.means for part in parts]),
            np.sum([part.within for part in parts], axis=0),
        )

    @property
    def images(self) -> float:
        """Number of images."""
        return float(self.counts.sum())

    @property
    def mean(self) -> np.ndarray:
        """Mean of all images, float64 [D]."""
        mean: np.ndarray = self.counts @ self.means / self.images
        return mean

    def within_covariance(self) -> np.ndarray:
        """Mean covariance within the classes, float64 [D, D], divided by the number of images."""
        covariance: np.ndarray = self.within / self.images
        return covariance

    def between_covariance(self) -> np.ndarray:
        """Covariance of the class means, weighted by the images of a class, float64 [D, D]."""
        deviation = (self.means - self.mean) * np.sqrt(self.counts / self.images)[:, None]
        covariance: np.ndarray = deviation.T @ deviation
        return covariance

    def covariance(self) -> np.ndarray:
        """Covariance of all images, float64 [D, D]: that within the classes and that of their means."""
        covariance: np.ndarray = self.within_covariance() + self.between_covariance()
        return covariance
