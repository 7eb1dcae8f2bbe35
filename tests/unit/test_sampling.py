"""Metrics of a sample of the queries: how often their intervals hold those of all."""

from __future__ import annotations

import numpy as np
import pytest

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation.metrics import metrics_of
from paddlex_feat.evaluation.ranking.ranks import Ranking
from paddlex_feat.evaluation.sampling import LEVEL, intervals, sample_of


def ranking(first: np.ndarray, precision: np.ndarray) -> Ranking:
    none = np.zeros(len(first))
    return Ranking(first, none, none, precision, none, none, none)


def population(size: int, hard: float, unmatched: float) -> Ranking:
    """Queries of which a part is hard and a part has no match at all."""
    rng = np.random.default_rng(int(1000 * hard) + size)
    first = np.where(rng.random(size) < hard, rng.integers(2, 50, size), 1)
    first[rng.random(size) < unmatched] = 0
    precision = np.where(first > 0, 1 / np.maximum(first, 1), 0.0)  # nearly all of them 1
    return ranking(first, precision)


@pytest.mark.parametrize(
    ("size", "drawn", "hard", "unmatched"),
    [
        (5000, 200, 0.3, 0.0),
        (5000, 200, 0.02, 0.0),
        (800, 400, 0.2, 0.1),
        (2000, 50, 0.5, 0.2),
        (10_000, 50, 0.02, 0.0),
        (10_000, 100, 0.01, 0.0),
    ],
)
def test_the_intervals_hold_the_metrics_of_all_as_often_as_they_say(size, drawn, hard, unmatched):
    whole = population(size, hard, unmatched)
    true = metrics_of(whole)
    wanted = {"recall1": true.recall[1], "recall5": true.recall[5], "mAP": true.mean_ap}
    rng, held, width = np.random.default_rng(0), dict.fromkeys(wanted, 0), 0.0
    for _ in range(400):
        chosen = rng.choice(size, drawn, replace=False)
        found = intervals(ranking(whole.first_match[chosen], whole.average_precision[chosen]), (1, 5), size)
        for name, (low, high) in found.items():
            held[name] += low <= wanted[name] <= high
        width += found["recall1"][1] - found["recall1"][0]
    assert all(count / 400 >= 0.91 for count in held.values()), held
    assert 0.01 < width / 400 < 0.3 and LEVEL == 0.95


def test_nothing_is_uncertain_about_all_queries():
    whole = population(300, 0.3, 0.1)
    true, found = metrics_of(whole), intervals(whole, (1,), 300)
    assert found == {"recall1": (true.recall[1],) * 2, "mAP": (pytest.approx(true.mean_ap),) * 2}


def test_a_sample_keeps_order_names_and_what_is_left_out(tmp_path):
    records = ImageList("query", tmp_path, [f"{n}.jpg" for n in range(50)], list(range(50)), list(range(1, 51)))
    records.leave_one_out, records.cameras = True, [n % 3 for n in range(50)]
    part = sample_of(records, 20, 1)
    assert len(part) == 20 and part.labels == sorted(part.labels) == [n - 1 for n in part.lines]
    assert part.leave_one_out and part.cameras == [n % 3 for n in part.labels]
    assert sample_of(records, 20, 1).paths == part.paths != sample_of(records, 20, 2).paths
    assert sample_of(records, 50, 1) is records
