"""recall@k and mean average precision, exact over the full ranking. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddlex_feat.errors import EvaluationError

BLOCK_BYTES = 64 * 2**20  # of similarities held at a time, whatever the sizes of the lists


@dataclass(frozen=True)
class RetrievalMetrics:
    """Result of `retrieval_metrics`.

    Attributes:
        recall: k -> share of matched queries with a match among their k nearest.
        mean_ap: mean over matched queries of average precision.
        first_match: int64 [Q], rank of the first match, from 1; 0 where there is none.
        matched_queries: the denominator of recall and mean_ap.
        unmatched_queries: queries whose label the gallery does not hold; left out.
    """

    recall: dict[int, float]
    mean_ap: float
    first_match: np.ndarray
    matched_queries: int
    unmatched_queries: int


def retrieval_metrics(
    query: np.ndarray,
    query_labels: Sequence[int] | np.ndarray,
    gallery: np.ndarray,
    gallery_labels: Sequence[int] | np.ndarray,
    ks: Sequence[int] = (1, 5),
) -> RetrievalMetrics:
    """Rank the gallery for each query by dot product and compare labels.

    Ties are counted against us: an image of another label at the same similarity ranks before
    a match. So the result depends neither on the order of the lists nor on a sort.

    Args:
        query: float32 [Q, D]; gallery: float32 [G, D]. Rows of unit length give cosines.
        query_labels: integers [Q]; gallery_labels: integers [G].
        ks: the k of recall@k; a k beyond G means the whole gallery.

    recall@k is the share of queries with at least one match within the first k (a hit rate, as
    in PaddleClas). Average precision of a query with m matches at ranks r_1 < … < r_m is
    (1/m) * sum_j j / r_j over the full ranking, without interpolation.

    Raises EvaluationError if no query has a match or a feature is not finite.
    """
    query_labels, gallery_labels = np.asarray(query_labels), np.asarray(gallery_labels)
    for name, features in (("query", query), ("gallery", gallery)):
        bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
        if len(bad):
            raise EvaluationError(
                f"{len(bad)} {name} features are not finite.",
                where=f"{name} image {int(bad[0]) + 1}",
                fix="The weights are damaged or training diverged.",
            )
    matched = np.isin(query_labels, gallery_labels)
    if not matched.any():
        raise EvaluationError(
            "No query has a gallery image of its label: there is nothing to measure.",
            where=f"{len(query_labels)} queries, {len(gallery_labels)} gallery images",
            fix="Give gallery.txt and query.txt the same labels.",
        )
    first_match = np.zeros(len(query), np.int64)
    precision = np.zeros(len(query), np.float64)
    rows = max(1, BLOCK_BYTES // (4 * len(gallery)))
    for start in range(0, len(query), rows):
        similarity = query[start : start + rows] @ gallery.T
        for row, scores in enumerate(similarity, start):
            if matched[row]:
                ranks = match_ranks(scores, gallery_labels == query_labels[row])
                first_match[row] = ranks[0]
                precision[row] = np.mean(np.arange(1, len(ranks) + 1) / ranks)
    count = int(matched.sum())
    hits = first_match[matched]
    return RetrievalMetrics(
        recall={k: float(np.count_nonzero(hits <= k) / count) for k in ks},
        mean_ap=float(precision[matched].mean()),
        first_match=first_match,
        matched_queries=count,
        unmatched_queries=len(query) - count,
    )


def match_ranks(scores: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Ranks, from 1, of the relevant items when scores are sorted in descending order.

    Args:
        scores: float [G]; relevant: bool [G].

    Returns int64 [m], ascending. By counting: the j-th best match stands behind j - 1 matches
    and every other item that scores at least as much.
    """
    matches = np.sort(scores[relevant])
    others = scores[~relevant]
    # For each other item: how many matches does it stand before, itself winning ties?
    behind = np.searchsorted(matches, others, side="right")
    counts = np.bincount(behind, minlength=len(matches) + 1)
    # Others standing before the i-th match in ascending order are those with behind > i.
    before = np.cumsum(counts[::-1])[::-1][1:]
    return before[::-1] + np.arange(1, len(matches) + 1)
