"""Analyse a ranking: scores of classes, confusions, similarities of pairs, an interval of recall@1. NumPy only.

`first_match` is int64 [Q] everywhere, as `Ranking.first_match` has it: the rank of a query's first
match from 1, 0 where the gallery has none. A query is matched if it is above 0, right if it is 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

MAX_PAIRS = 4_000_000  # similarities in memory: 32 MB
SAMPLE = 2000  # queries, and gallery images, that are drawn from larger lists
MATCHES = 10  # matching pairs of a sampled query, at most
_BLOCK = 2000  # rows of a feature matrix that are converted to float64 at a time


@dataclass(frozen=True)
class ClassScore:
    """The queries of one class.

    Attributes:
        queries: matched ones, the denominator of the two means.
        recall1: share of them whose nearest gallery image is of the class.
        mean_ap: mean of their average precisions.
        failure: the query whose first match has the largest rank; None if all are right.
    """

    label: int
    queries: int
    recall1: float
    mean_ap: float
    failure: int | None = None


@dataclass(frozen=True)
class Confusion:
    """`count` queries of class `label` whose nearest gallery image is of class `taken_for`.

    `query` is the first of these queries, an index into the query list.
    """

    label: int
    taken_for: int
    count: int
    query: int


@dataclass(frozen=True)
class Pairs:
    """Similarities of (query, gallery image) pairs.

    Attributes:
        matching, other: float64 [n], of pairs of one class and of different classes.
        queries, gallery: number of images compared.
        sampled: whether these are a sample of all pairs.
    """

    matching: np.ndarray
    other: np.ndarray
    queries: int
    gallery: int
    sampled: bool


def class_scores(first_match: np.ndarray, average_precision: np.ndarray, labels: np.ndarray) -> list[ClassScore]:
    """Classes of matched queries, lowest recall@1 first; of equal ones the larger, then the smaller label.

    Args:
        first_match: int64 [Q], rank of the first match; 0: none.
        average_precision: float64 [Q].
        labels: int64 [Q], class of each query.
    """
    matched = first_match > 0
    names, place = np.unique(labels[matched], return_inverse=True)
    queries = np.bincount(place, minlength=len(names))
    recall = np.bincount(place, first_match[matched] == 1, len(names)) / queries
    precisions: list[list[float]] = [[] for _ in names]
    for c, precision in zip(place.tolist(), average_precision[matched].tolist(), strict=True):
        precisions[c].append(precision)
    worst = np.flatnonzero(first_match > 1)
    worst = worst[np.argsort(-first_match[worst], kind="stable")]
    failed, at = np.unique(labels[worst], return_index=True)
    failures = dict(zip(failed.tolist(), worst[at].tolist(), strict=True))
    return [
        ClassScore(
            int(names[c]),
            int(queries[c]),
            float(recall[c]),
            math.fsum(precisions[c]) / int(queries[c]),
            failures.get(int(names[c])),
        )
        for c in np.lexsort((names, -queries, recall))
    ]


def unmatched_classes(first_match: np.ndarray, labels: np.ndarray) -> dict[int, int]:
    """Label -> queries without a gallery match, smallest label first."""
    names, counts = np.unique(labels[first_match == 0], return_counts=True)
    return dict(zip(names.tolist(), counts.tolist(), strict=True))


def confusions(first_match: np.ndarray, labels: np.ndarray, taken_for: np.ndarray) -> list[Confusion]:
    """Pairs of classes that matched queries confuse, most frequent first, then by the two labels.

    Args:
        first_match: int64 [Q], rank of the first match; 0: none.
        labels: int64 [Q], class of each query.
        taken_for: int64 [Q], class of its nearest gallery image; not read where there is none.
    """
    wrong = np.flatnonzero(first_match > 1)
    pairs, first, counts = np.unique(
        np.stack([labels[wrong], taken_for[wrong]], axis=1), axis=0, return_index=True, return_counts=True
    )
    return [
        Confusion(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i]), int(wrong[first[i]]))
        for i in np.lexsort((pairs[:, 1], pairs[:, 0], -counts))
    ]


def recall1_interval(right: int, queries: int, resamples: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95 % percentile bootstrap interval of recall@1 (Efron: Bootstrap methods, 1979).

    Without width where all queries are right, or none: resamples hold nothing that the sample does not.
    """
    # A resample draws `queries` of them with replacement. Each is right or not, so the number of right ones
    # is Binomial(queries, right / queries): to draw it directly is the bootstrap itself, not an approximation.
    recalls = np.random.default_rng(seed).binomial(queries, right / queries, resamples) / queries
    low, high = np.percentile(recalls, (2.5, 97.5))
    return float(low), float(high)


def pair_similarities(
    query: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    self_pairs: np.ndarray | None = None,
    seed: int = 0,
) -> Pairs:
    """Similarities of all pairs, or, above `MAX_PAIRS`, of a random `SAMPLE` of queries and gallery images.

    Matching pairs of the sampled queries are drawn separately, up to `MATCHES` of each: with many classes two random
    images hardly ever match.

    Args:
        query: float32 [Q, D]; may be memory-mapped, read by rows.
        query_labels: int64 [Q].
        gallery: float32 [G, D], as `query`.
        gallery_labels: int64 [G].
        self_pairs: int64 [P, 2], (query, gallery) pairs that are left out.
        seed: of the random choice of samples.
    """
    sampled = len(query) * len(gallery) > MAX_PAIRS
    rng = np.random.default_rng(seed)
    rows, columns = (
        np.sort(rng.choice(n, min(n, SAMPLE), replace=False)) if sampled else np.arange(n)
        for n in (len(query), len(gallery))
    )
    similarity = np.empty((len(rows), len(columns)))
    for i in range(0, len(rows), _BLOCK):
        left = query[rows[i : i + _BLOCK]].astype(np.float64)
        for j in range(0, len(columns), _BLOCK):
            right = gallery[columns[j : j + _BLOCK]].astype(np.float64)
            similarity[i : i + _BLOCK, j : j + _BLOCK] = left @ right.T
    same = query_labels[rows][:, None] == gallery_labels[columns]
    kept = np.ones(same.shape, bool)
    if self_pairs is not None and len(self_pairs):
        inside = self_pairs[np.isin(self_pairs[:, 0], rows) & np.isin(self_pairs[:, 1], columns)]
        kept[np.searchsorted(rows, inside[:, 0]), np.searchsorted(columns, inside[:, 1])] = False
    matching = similarity[same & kept]
    if sampled:
        pairs = _some_matches(rows, query_labels, gallery_labels, rng)
        if self_pairs is not None and len(self_pairs):
            pairs = pairs[~np.isin(pairs @ [len(gallery), 1], self_pairs @ [len(gallery), 1])]
        matching = np.einsum("nd,nd->n", query[pairs[:, 0]], gallery[pairs[:, 1]], dtype=np.float64)
    return Pairs(matching, similarity[~same & kept], len(rows), len(columns), sampled)


def _some_matches(
    rows: np.ndarray, query_labels: np.ndarray, gallery_labels: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """int64 [P, 2], up to `MATCHES` random pairs of one class for each of the queries `rows`."""
    order = np.argsort(gallery_labels, kind="stable")
    first = np.searchsorted(gallery_labels[order], query_labels[rows])
    last = np.searchsorted(gallery_labels[order], query_labels[rows], side="right")
    pairs = []
    for q, a, b in zip(rows.tolist(), first.tolist(), last.tolist(), strict=True):
        chosen = a + rng.choice(b - a, min(b - a, MATCHES), replace=False, shuffle=False)
        pairs.append(np.stack([np.full(len(chosen), q), order[chosen]], axis=1))
    return np.concatenate(pairs)
