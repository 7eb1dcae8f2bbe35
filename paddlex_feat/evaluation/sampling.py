"""Metrics of a random sample of the queries, with the interval in which those of all queries lie."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation.ranking.ranks import Ranking

LEVEL = 0.95
_Z = 1.959963984540054  # standard deviations from the mean that hold LEVEL of a normal distribution


def sample_of(query: ImageList, count: int, seed: int) -> ImageList:
    """A random part of the queries, without repetition, in their order; all of them if there are no more."""
    if count >= len(query):
        return query
    chosen = np.sort(np.random.default_rng(seed).choice(len(query), count, replace=False))
    part = query.part(chosen.tolist())
    part.leave_one_out = query.leave_one_out
    return part


def intervals(ranking: Ranking, ks: Sequence[int], queries: int) -> dict[str, tuple[float, float]]:
    """Intervals that hold the metrics of all queries in at least LEVEL of all samples: recall<k> and mAP.

    Both are narrower the larger the part of all queries is that was drawn (Cochran: Sampling Techniques, 1977,
    equation 3.8): nothing is uncertain about all of them.

    Args:
        ranking: of the sample.
        ks: the k of recall@k.
        queries: number of all queries; the sample has as many without a match, in proportion.
    """
    matched = ranking.first_match > 0
    first, precision = ranking.first_match[matched], ranking.average_precision[matched]
    count, drawn = len(first), len(matched) / queries
    total = max(count, round(count / drawn))
    found = {f"recall{k}": _of_share(int(np.count_nonzero(first <= k)), count, total) for k in ks}
    # No values between 0 and 1 vary more than zeros and ones of their mean, so this is wide enough.
    return {**found, "mAP": _of_share(math.fsum(precision.tolist()), count, total)}


def _of_share(hits: float, count: int, total: int) -> tuple[float, float]:
    """Wilson's score interval (1927), with as many trials as give the variance of a draw without repetition."""
    share = hits / count
    if count == total:
        return share, share
    trials = count * (total - 1) / (total - count)
    spread = _Z * math.sqrt(share * (1 - share) / trials + _Z**2 / (4 * trials**2))
    middle, scale = share + _Z**2 / (2 * trials), 1 + _Z**2 / trials
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
