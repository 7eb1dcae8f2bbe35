"""Affine maps of features and their closed forms, in float64.

A map acts on the network's output as it is, before the L2 normalisation: y = scale * ((x - mean) @ basis). Retrieval
compares directions, so a map changes nothing but the geometry between images, and a rotation of y changes nothing.

With S the covariance of all images, W the mean covariance within the classes and B that of the class means (S = W + B),
t = trace / D of the matrix it is added to, and K the number of classes:

    pca      x - mean on the eigenvectors of S, each divided by (eigenvalue + 0.1 t) ** (strength / 2): strength 0
             centres alone, strength 1 whitens (Jegou and Chum, ECCV 2012)
    within   whitening by W alone, in all D directions, W shrunk to (1 - strength) W + strength t I
             (Hatch et al., Interspeech 2006; the shrinkage of Ledoit and Wolf, 2004)
    lda      the same followed by the K - 1 directions of the class means (Fisher's linear discriminant)
    ridge    the linear map that brings images closest to their class mean: B (S + strength t I)^-1
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from threadpoolctl import threadpool_limits

from paddlex_feat.training.adaptation.statistics import ROWS, ClassStatistics

# Up to so many images, their mirror images are fitted too: they take as long, and gain 0.002 of recall1 with 2,000.
MIRRORED = 1000
PCA, WITHIN, LDA, RIDGE = "pca", "within", "lda", "ridge"
PCA_STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
SHRINKAGES = (0.1, 0.3, 0.5, 0.7, 0.9)
RIDGE_STRENGTHS = (0.1, 1.0)
EVENED = 0.5  # of ORL, Fashion, emoji and icons, 128 numbers then lose at most 0.009 of recall1, not 0.005 to 0.022
_PCA_FLOOR = 0.1  # of the mean variance: whitening must not blow up directions of noise


@dataclass(frozen=True)
class AffineMap:
    """y = matrix @ (x - mean) = matrix @ x + offset.

    Attributes:
        mean: float64 [D].
        matrix: float64 [K, D].
    """

    mean: np.ndarray
    matrix: np.ndarray

    @property
    def offset(self) -> np.ndarray:
        """float64 [K]."""
        offset: np.ndarray = -self.matrix @ self.mean
        return offset

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Map features, float [N, D], to float64 [N, K]."""
        mapped: np.ndarray = (features - self.mean) @ self.matrix.T
        return mapped


@dataclass(frozen=True)
class Family:
    """Maps that differ in their strength alone: y = scale * ((x - mean) @ basis).

    Attributes:
        kind: one of PCA, WITHIN, LDA, RIDGE, or that of a trained map.
        mean: float64 [D].
        basis: float64 [D, K].
        scales: float64 [K] by strength.
    """

    kind: str
    mean: np.ndarray
    basis: np.ndarray
    scales: Mapping[float, np.ndarray]

    def map(self, strength: float) -> AffineMap:
        """The map of one strength."""
        return AffineMap(self.mean, (self.basis * self.scales[strength]).T)


def closed_forms(statistics: ClassStatistics) -> list[Family]:
    """Fit all closed forms that the data determine: none for features without variance, `pca` alone for one class."""
    if not np.trace(statistics.covariance()) > 0:
        return []
    variance, basis = eigenvectors(statistics.covariance())
    families = [_pca(statistics, variance, basis)]
    if len(statistics.counts) > 1 and np.trace(statistics.within) > 0:
        families += [*_within_and_lda(statistics), *_ridge(statistics, variance, basis)]
    return families


def _pca(statistics: ClassStatistics, variance: np.ndarray, basis: np.ndarray) -> Family:
    floor = _PCA_FLOOR * variance.mean()
    scales = {s: (variance + floor) ** (-s / 2) for s in PCA_STRENGTHS}
    return Family(PCA, statistics.mean, basis, scales)


def _within_and_lda(statistics: ClassStatistics) -> list[Family]:
    mean = statistics.mean
    variance, basis = eigenvectors(statistics.within_covariance())
    scales = {s: ((1 - s) * variance + s * variance.mean()) ** -0.5 for s in SHRINKAGES}
    families = [Family(WITHIN, mean, basis, scales)]
    weights = np.sqrt(statistics.counts / statistics.images)[:, None]
    centres = weights * ((statistics.means - mean) @ basis)
    for strength, scale in scales.items():
        # Rows of `directions`: orthonormal, by decreasing variance of the whitened class means.
        _, spread, directions = np.linalg.svd(centres * scale, full_matrices=False)
        used = int(np.count_nonzero(spread > spread[0] * 1e-9)) if spread[0] > 0 else 0
        if used:
            discriminants = (basis * scale) @ directions[:used].T
            families.append(Family(LDA, mean, discriminants, {strength: np.ones(used)}))
    return families


def _ridge(statistics: ClassStatistics, variance: np.ndarray, basis: np.ndarray) -> list[Family]:
    deviation = (statistics.means - statistics.mean) * np.sqrt(statistics.counts / statistics.images)[:, None]
    _, spread, directions = np.linalg.svd(deviation, full_matrices=False)
    if not spread[0]:
        return []
    families = []
    for strength in RIDGE_STRENGTHS:
        # B = directions.T spread^2 directions; its left factor is a rotation, which changes no similarity.
        inverse = (basis / (variance + strength * variance.mean())) @ (basis.T @ directions.T)
        families.append(Family(RIDGE, statistics.mean, inverse * spread**2, {strength: np.ones(len(spread))}))
    return families


def eigenvectors(symmetric: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of a positive semidefinite matrix, largest first, at least 0, [D], and eigenvectors as columns.

    Each eigenvector's largest component is positive, so that its sign does not depend on the library.
    """
    values, vectors = np.linalg.eigh(symmetric)
    vectors = vectors[:, ::-1]
    largest = np.abs(vectors).argmax(axis=0)
    signs = np.where(vectors[largest, np.arange(vectors.shape[1])] < 0, -1.0, 1.0)
    return np.maximum(values[::-1], 0), vectors * signs


def arrange(chosen: AffineMap, statistics: ClassStatistics) -> tuple[AffineMap, np.ndarray]:
    """Rotate and scale a map's output, which changes no cosine, and give it as many outputs as it has inputs.

    The outputs are uncorrelated over `statistics`, the largest variance first, so that the first k of them are the
    best k; together they have the variance of the network's own features. Additional outputs are 0.

    Returns the map and the variance of each output, float64 [D].
    """
    covariance, dim = statistics.covariance(), len(chosen.mean)
    variance, rotation = eigenvectors(chosen.matrix @ covariance @ chosen.matrix.T)
    factor = np.trace(covariance) / variance.sum()
    matrix = np.zeros((dim, dim))
    matrix[: len(variance)] = factor**0.5 * (rotation.T @ chosen.matrix)
    return AffineMap(chosen.mean, matrix), np.append(factor * variance, np.zeros(dim - len(variance)))


def evened(variance: np.ndarray, dimension: int) -> np.ndarray:
    """Factors, float64 [dimension], of the leading outputs of variances `variance`, float64 [D], when the rest is cut.

    1 for more than a quarter of the outputs. Fewer are evened out by half, as `pca` of strength EVENED does: with all
    numbers, the first few directions decide most of a cosine, and the many small ones that are cut off the rest.
    """
    if 4 * dimension > len(variance):
        return np.ones(dimension)
    factors: np.ndarray = (variance[:dimension] + _PCA_FLOOR * variance.mean()) ** (-EVENED / 2)
    return factors


def principal(features: np.ndarray) -> tuple[AffineMap, np.ndarray]:
    """Rotate features, float [N, D], to their principal directions; also the second moment of each output.

    Those of the features at unit length, without centring: the first k outputs keep cosines as well as any k linear
    ones can (Eckart and Young, 1936), and all of them exactly.
    """
    dim = features.shape[1]
    moments = np.zeros((dim, dim))
    for first in range(0, len(features), ROWS):
        rows = features[first : first + ROWS].astype(np.float64)
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        rows /= np.where(lengths > 0, lengths, 1)
        with threadpool_limits(1, user_api="blas"):
            moments += rows.T @ rows
    with threadpool_limits(1, user_api="blas"):  # sums of several threads differ with their number
        variance, basis = eigenvectors(moments / max(len(features), 1))
    return AffineMap(np.zeros(dim), basis.T), variance
