"""recall@k, mAP, mAP@R and MRR of a ranking."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddlex_feat.errors import EvaluationError
from paddlex_feat.evaluation.ranking.ranks import Ranking, rank_gallery


@dataclass(frozen=True)
class RetrievalMetrics:
    """Means over the matched queries, those with at least one match in the gallery.

    Attributes:
        recall: k -> share of queries with a match among their k nearest: recall@k as PaddleClas and
            pytorch-metric-learning (there precision_at_1 for k = 1) count it, a hit rate.
        mean_ap: average precision over the full ranking: with m matches at ranks r_1 < … < r_m it is
            (1/m) * sum_j j / r_j, without interpolation.
        mean_ap_at_r: the same sum over the matches within the first R = m alone, also divided by m
            (Musgrave, Belongie, Lim: A Metric Learning Reality Check, 2020).
        mrr: mean of 1 / r_1.
        matched_queries: the denominator of all of them.
        unmatched_queries: queries whose label no gallery image has; left out.
    """

    recall: dict[int, float]
    mean_ap: float
    mean_ap_at_r: float
    mrr: float
    matched_queries: int
    unmatched_queries: int

    def main(self) -> dict[str, float]:
        """recall1, recall5, mAP. Both k must have been asked for."""
        return {"recall1": self.recall[1], "recall5": self.recall[5], "mAP": self.mean_ap}


def metrics_of(ranking: Ranking, ks: Sequence[int] = (1, 5)) -> RetrievalMetrics:
    """Means over the matched queries. Sums are rounded once (math.fsum), so the order of the queries changes nothing.

    Args:
        ranking: from `rank_gallery`.
        ks: the k of recall@k; a k beyond the gallery means all of it.

    Raises:
        EvaluationError: If no query has a match ("no-matches").
    """
    matched = ranking.first_match > 0
    first, count = ranking.first_match[matched], int(matched.sum())
    if not count:
        raise EvaluationError(
            "No query has a gallery image of its label: there is nothing to measure.",
            where=f"{len(matched)} queries",
            fix="Give gallery.txt and query.txt the same labels.",
            code="no-matches",
        )

    def mean(values: np.ndarray) -> float:
        return math.fsum(values.tolist()) / count

    return RetrievalMetrics(
        recall={k: int(np.count_nonzero(first <= k)) / count for k in ks},
        mean_ap=mean(ranking.average_precision[matched]),
        mean_ap_at_r=mean(ranking.precision_at_r[matched]),
        mrr=mean(1 / first),
        matched_queries=count,
        unmatched_queries=len(matched) - count,
    )


def retrieval_metrics(
    query: np.ndarray,
    query_labels: Sequence[int] | np.ndarray,
    gallery: np.ndarray,
    gallery_labels: Sequence[int] | np.ndarray,
    ks: Sequence[int] = (1, 5),
) -> RetrievalMetrics:
    """Rank the gallery for each query and average: `rank_gallery` and `metrics_of` in one call.

    Args:
        query: float32 [Q, D], rows of length 1.
        query_labels: integers [Q].
        gallery: float32 [G, D], rows of length 1.
        gallery_labels: integers [G].
        ks: the k of recall@k.

    Raises:
        EvaluationError: As the two functions.
    """
    return metrics_of(rank_gallery(query, query_labels, gallery, gallery_labels, nearest=0), ks)
