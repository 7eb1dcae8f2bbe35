"""Retrieval metrics against brute force in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlex_feat.errors import EvaluationError
from paddlex_feat.retrieval import metrics as module
from paddlex_feat.retrieval.metrics import match_ranks, retrieval_metrics
from paddlex_feat.retrieval.picture import choose_queries


def brute_force(query, query_labels, gallery, gallery_labels, ks):
    """Sort every row, ties against us, and walk down the list."""
    hits, precisions = {k: [] for k in ks}, []
    for q, label in zip(query.astype(np.float64), query_labels, strict=True):
        if label not in gallery_labels:
            continue
        rows = sorted(
            (-float(q @ g), gl == label) for g, gl in zip(gallery.astype(np.float64), gallery_labels, strict=True)
        )
        flags = [match for _, match in rows]  # at equal similarity False sorts before True
        for k in ks:
            hits[k].append(any(flags[:k]))
        found, total = 0, 0.0
        for rank, match in enumerate(flags, 1):
            if match:
                found += 1
                total += found / rank
        precisions.append(total / found)
    return {k: np.mean(v) for k, v in hits.items()}, np.mean(precisions)


vectors = st.integers(1, 12).flatmap(
    lambda n: st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=n, max_size=n)
)


@settings(max_examples=300, deadline=None)
@given(query=vectors, gallery=vectors, seed=st.integers(0, 99))
def test_equal_to_brute_force_with_ties_and_duplicates(query, gallery, seed):
    """Small integers: exact in float32, and full of ties."""
    rng = np.random.default_rng(seed)
    query, gallery = np.array(query, np.float32), np.array(gallery, np.float32)
    query_labels, gallery_labels = rng.integers(0, 4, len(query)), rng.integers(0, 4, len(gallery))
    if not np.isin(query_labels, gallery_labels).any():
        with pytest.raises(EvaluationError):
            retrieval_metrics(query, query_labels, gallery, gallery_labels)
        return
    got = retrieval_metrics(query, query_labels, gallery, gallery_labels, ks=(1, 3, 5))
    recall, mean_ap = brute_force(query, query_labels, gallery, gallery_labels.tolist(), (1, 3, 5))
    assert got.recall == pytest.approx(recall) and got.mean_ap == pytest.approx(mean_ap)
    assert got.matched_queries + got.unmatched_queries == len(query)


def test_by_hand():
    gallery = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    query = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    # Query 0 (class 7): matches at ranks 1 and 3, AP (1 + 2/3) / 2. Query 1 (class 8): rank 2, AP 1/2.
    result = retrieval_metrics(query, [7, 8, 99], gallery, [7, 8, 7])
    assert result.recall == {1: 0.5, 5: 1.0}
    assert result.mean_ap == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert result.first_match.tolist() == [1, 2, 0]
    assert (result.matched_queries, result.unmatched_queries) == (2, 1)


def test_a_tie_counts_against_us():
    assert match_ranks(np.array([1.0, 1.0, 1.0]), np.array([False, True, False])).tolist() == [3]


def test_block_size_and_order_change_nothing(monkeypatch):
    rng = np.random.default_rng(4)
    query, gallery = (rng.standard_normal((n, 8)).astype(np.float32) for n in (50, 70))
    ql, gl = rng.integers(0, 9, 50), rng.integers(0, 9, 70)
    whole = retrieval_metrics(query, ql, gallery, gl)
    order_q, order_g = rng.permutation(50), rng.permutation(70)
    for block in (1, 7, 50):
        monkeypatch.setattr(module, "BLOCK_BYTES", block * 70 * 4)
        again = retrieval_metrics(query[order_q], ql[order_q], gallery[order_g], gl[order_g])
        assert again.recall == whole.recall and again.mean_ap == pytest.approx(whole.mean_ap, abs=1e-12)


def test_a_gallery_smaller_than_k():
    one = np.ones((1, 2), np.float32)
    assert retrieval_metrics(one, [1], one, [1]).recall == {1: 1.0, 5: 1.0}


@pytest.mark.parametrize(
    ("first", "count", "wrong"),
    [([1] * 9 + [3], 4, 1), ([3] * 10, 4, 4), ([1] * 10, 4, 0), ([0, 1, 2], 8, 1), ([1] * 6 + [2] * 6, 4, 2)],
)
def test_the_picture_shows_failures_in_proportion(first, count, wrong):
    shown = choose_queries(np.array(first), [q % 3 for q in range(len(first))], count)
    assert len(shown) == len(set(shown)) == min(count, np.count_nonzero(first))
    assert sum(first[q] > 1 for q in shown) == wrong and all(first[q] > 1 for q in shown[:wrong])


def test_the_picture_shows_different_classes():
    labels = [0] * 50 + [1, 2]
    shown = choose_queries(np.ones(52, int), labels, 4)
    assert {labels[q] for q in shown[:3]} == {0, 1, 2} and labels[shown[3]] == 0
