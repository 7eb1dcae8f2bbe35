"""Ranks and retrieval metrics against brute force in integers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlex_feat.errors import EvaluationError
from paddlex_feat.evaluation.metrics import metrics_of, retrieval_metrics
from paddlex_feat.evaluation.ranking import rank_counter, tiles
from paddlex_feat.evaluation.ranking import ranks as ranks_module
from paddlex_feat.evaluation.ranking.exact_dot import error_bound, exact_dot, take_rounded
from paddlex_feat.evaluation.ranking.hits import first_hits
from paddlex_feat.evaluation.ranking.ranks import Ranking, rank_gallery
from paddlex_feat.reports.query_sheets import choose_queries

GRID = 2.0**26


def unit(rows):
    """Rows of length 1 as an extractor gives them; rows of zeros stay."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)


def whole_numbers(rows):
    """Components in multiples of 2**-26, int64: their dot products are exact, and rank as the features do."""
    return np.rint(rows.astype(np.float64) * GRID).astype(np.int64)


def true_dots(x, y):
    """Dot products, each the exact one rounded once: a product of two float32 is exact in float64."""
    wide = y.astype(np.float64)
    return np.array([[math.fsum(products) for products in wide * row] for row in x.astype(np.float64)])


def brute_force(query, query_labels, gallery, gallery_labels, self_pairs=(), ks=(1, 3, 5)):
    """Sort every row, ties against us, and walk down the list."""
    hits, ap, ap_at_r, rr, firsts, orders = {k: [] for k in ks}, [], [], [], [], []
    left_out = {tuple(pair) for pair in np.asarray(self_pairs).tolist()}
    for i, (q, label) in enumerate(zip(whole_numbers(query), query_labels, strict=True)):
        rows = sorted(
            (-int(q @ g), bool(gl == label), gl, j)
            for j, (g, gl) in enumerate(zip(whole_numbers(gallery), gallery_labels, strict=True))
            if (i, j) not in left_out
        )
        orders.append([j for *_, j in rows])
        flags = [match for _, match, *_ in rows]  # at equal similarity False sorts before True
        total, found, in_r = 0.0, 0, 0.0
        for place, match in enumerate(flags, 1):
            if match:
                found += 1
                total += found / place
                in_r += found / place if place <= sum(flags) else 0
        firsts.append(flags.index(True) + 1 if found else 0)
        if found:
            for k in ks:
                hits[k].append(any(flags[:k]))
            ap.append(total / found)
            ap_at_r.append(in_r / found)
            rr.append(1 / firsts[-1])
    means = [float(np.mean(values)) if values else None for values in (ap, ap_at_r, rr)]
    return {k: np.mean(v) for k, v in hits.items() if v}, *means, firsts, orders


def same(one, other) -> bool:
    """Equal to the last bit."""
    return all(np.array_equal(getattr(one, f), getattr(other, f), equal_nan=True) for f in vars(one))


vectors = st.integers(1, 14).flatmap(
    lambda n: st.lists(st.lists(st.integers(-2, 2), min_size=3, max_size=3), min_size=n, max_size=n)
)


@settings(max_examples=400, deadline=None)
@given(query=vectors, gallery=vectors, seed=st.integers(0, 99), block=st.sampled_from([1, 7, 1000]), data=st.data())
def test_equal_to_brute_force(query, gallery, seed, block, data):
    """Few directions: full of ties, duplicates, zero rows, negative similarities and classes without a match."""
    rng = np.random.default_rng(seed)
    query, gallery = np.array(query, np.float32), np.array(gallery, np.float32)
    if data.draw(st.booleans(), "all similarities negative"):
        query, gallery = abs(query) + 1, -abs(gallery) - 1
    query, gallery = unit(query), unit(gallery)
    query_labels, gallery_labels = rng.integers(0, 4, len(query)), rng.integers(0, 4, len(gallery))
    self_pairs = rng.integers(0, (len(query), len(gallery)), (data.draw(st.integers(0, 3), "self_pairs files"), 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks_module, "COLUMNS", block)
        patch.setattr(ranks_module, "ROWS", data.draw(st.sampled_from([1, 7, 1000]), "rows of a product"))
        patch.setattr(ranks_module, "QUERIES", data.draw(st.sampled_from([1, 7, 1000]), "queries at a time"))
        patch.setattr(
            rank_counter, "_HEAVY", data.draw(st.sampled_from([0.01, 16, 1e9]), "when exact products take over")
        )
        got = rank_gallery(
            query, query_labels, gallery, gallery_labels, self_pairs, threads=data.draw(st.sampled_from([1, 3]))
        )
    recall, *means, firsts, orders = brute_force(query, query_labels, gallery, gallery_labels, self_pairs)
    nearest = [order[:5] for order in orders]
    assert got.first_match.tolist() == firsts
    assert [g for g in got.first.tolist() if g >= 0] == [
        next(j for j in order if gallery_labels[j] == label)
        for order, label, first in zip(orders, query_labels, firsts, strict=True)
        if first
    ]
    assert [[j for j in row if j >= 0] for row in got.nearest.tolist()] == nearest
    if not any(firsts):
        with pytest.raises(EvaluationError, match="No query has a gallery image of its label"):
            metrics_of(got)
        return
    metrics = metrics_of(got, ks=(1, 3, 5))
    assert metrics.recall == pytest.approx(recall)
    assert [metrics.mean_ap, metrics.mean_ap_at_r, metrics.mrr] == pytest.approx(means)
    assert (metrics.matched_queries, metrics.unmatched_queries) == (np.count_nonzero(firsts), firsts.count(0))


def many(kind, queries=60, images=3000, classes=40, dim=64):
    rng = np.random.default_rng(5)
    ql, gl = rng.integers(0, classes, queries), rng.integers(0, classes, images)
    centres, noise = rng.standard_normal((classes, dim)), {"trained": 1.5, "random": 50.0}.get(kind, 1.0)
    query, gallery = (centres[x] + noise * rng.standard_normal((len(x), dim)) for x in (ql, gl))
    if kind == "close":  # a network that has all but collapsed: float32 products tell nothing apart
        query, gallery = (1 + 1e-7 * x for x in (query, gallery))
    elif kind == "collapsed":
        query, gallery = np.ones_like(query), np.ones_like(gallery)
    elif kind == "duplicates":
        gallery[images // 2 :] = gallery[: images - images // 2]
    return unit(query), ql, unit(gallery), gl


def plain(query, ql, gallery, gl):
    """First match and average precision by sorting whole rows of exact similarities."""
    first, precision = np.zeros(len(query), np.int64), np.zeros(len(query))
    for i, scores in enumerate(whole_numbers(query) @ whole_numbers(gallery).T):
        ranks = np.flatnonzero((gl == ql[i])[np.lexsort((gl == ql[i], -scores))]) + 1
        if len(ranks):
            first[i], precision[i] = ranks[0], np.mean(np.arange(1, len(ranks) + 1) / ranks)
    return first, precision


@pytest.mark.parametrize("kind", ["trained", "random", "close", "collapsed", "duplicates"])
def test_identical_for_every_block_thread_count_and_order(kind, monkeypatch):
    query, ql, gallery, gl = many(kind, images=1500)
    whole = rank_gallery(query, ql, gallery, gl)
    first, precision = plain(query, ql, gallery, gl)
    assert np.array_equal(whole.first_match, first) and np.array_equal(whole.average_precision, precision)
    metrics = metrics_of(whole)
    for tile, rows, threads in ((1, 1000, 2), (7, 7, 1), (1000, 1, 3), (100_000, 100_000, 2)):
        monkeypatch.setattr(ranks_module, "COLUMNS", tile)
        monkeypatch.setattr(ranks_module, "ROWS", rows)
        monkeypatch.setattr(ranks_module, "QUERIES", 3 * rows // 2 + 1)
        few = slice(4 if tile == 1 else None)  # a tile of one image is slow
        part = Ranking(*(column[few] for column in vars(whole).values()))
        assert same(rank_gallery(query[few], ql[few], gallery, gl, threads=threads), part), (tile, rows)
    rng = np.random.default_rng(1)
    some, others = rng.permutation(len(query)), rng.permutation(len(gallery))
    again = rank_gallery(query[some], ql[some], gallery[others], gl[others])
    assert np.array_equal(again.first_match, whole.first_match[some])
    assert np.array_equal(again.similarity, whole.similarity[some], equal_nan=True)
    assert metrics_of(again) == metrics
    part = rank_gallery(query[3::7], ql[3::7], gallery, gl)
    assert np.array_equal(part.average_precision, whole.average_precision[3::7])


SHAPES = {
    "random": lambda x: x,
    "positive": abs,
    "constant": lambda x: np.ones_like(x),
    "sorted": lambda x: np.sort(abs(x))[:, ::-1],
    "sparse": lambda x: x**9,
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dim", [3, 64, 512, 2048, 8192])
def test_exact_dot_is_exact_in_any_order(dim, shape):
    """Against the true dot product of the rounded rows; with other blocks, and components in another order."""
    rng = np.random.default_rng(0)
    x, y = (unit(SHAPES[shape](rng.standard_normal((n, dim)))) for n in (4, 60))
    y[:4] = x
    rounded = [take_rounded(rows, np.arange(len(rows))) for rows in (x, y)]
    assert all(np.array_equal(r * GRID, whole_numbers(rows)) for r, rows in zip(rounded, (x, y), strict=True))
    products, truth = exact_dot(*rounded), true_dots(*rounded)
    assert np.array_equal(products, truth)
    assert np.array_equal(products.T, [exact_dot(rounded[0], row) for row in rounded[1]])
    order = rng.permutation(dim)
    assert np.array_equal(exact_dot(*(rows[:, order] for rows in rounded)), truth)
    assert np.abs(rounded[0] @ rounded[1].T - truth).max() <= error_bound(dim) < 1.01 * dim * 2.0**-24
    assert np.abs(true_dots(x, y) - truth).max() <= 1.01 * math.sqrt(dim) / GRID


def test_rows_are_rounded_in_chunks_and_not_changed(monkeypatch):
    from paddlex_feat.evaluation.ranking import exact_dot as module

    rows = unit(np.random.default_rng(0).standard_normal((50, 6)))
    before, order = rows.copy(), np.random.default_rng(1).permutation(50)
    whole = take_rounded(rows, order)
    monkeypatch.setattr(module, "_CHUNK_VALUES", 40)
    out = np.full((60, 6), 7, np.float32)
    assert np.array_equal(take_rounded(rows, order, out), whole) and (out[50:] == 7).all()
    assert np.array_equal(rows, before)


def test_differences_that_float32_cannot_tell_decide_down_to_the_grid():
    for smallest, expected in ((2.0**-26, 1), (2.0**-28, 2)):  # a difference below the grid is a tie
        query, gallery = np.array([[0.6, 0.8]], np.float32), np.array([[1, 0], [1, smallest]], np.float32)
        assert rank_gallery(query, [1], gallery, [0, 1]).first_match.tolist() == [expected]
        assert rank_gallery(query, [0], gallery, [0, 1]).first_match.tolist() == [2]


def test_by_hand():
    gallery = np.array([[1, 0], [0.8, 0.6], [0, 1]], np.float32)
    query = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    # Query 0 (class 7): matches at ranks 1 and 3, AP (1 + 2/3) / 2, AP@R 1/2. Query 1 (class 8): rank 2, AP 1/2.
    result = retrieval_metrics(query, [7, 8, 99], gallery, [7, 8, 7])
    assert result.recall == {1: 0.5, 5: 1.0}
    assert result.mean_ap == pytest.approx(((1 + 2 / 3) / 2 + 1 / 2) / 2)
    assert result.mean_ap_at_r == pytest.approx((1 / 2 + 0) / 2)
    assert result.mrr == pytest.approx((1 + 1 / 2) / 2)
    assert (result.matched_queries, result.unmatched_queries) == (2, 1)


def test_a_tie_counts_against_us():
    three = unit(np.ones((3, 2)))
    got = rank_gallery(three[:1], [1], three, [0, 1, 2])
    assert got.first_match.tolist() == [3] and got.nearest.tolist() == [[0, 2, 1, -1, -1]]


def test_self_pairs_are_left_out():
    three = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    self_pairs = np.array([[0, 0], [1, 1], [2, 2]])
    assert rank_gallery(three, [1, 2, 1], three, [1, 2, 1]).first_match.tolist() == [2, 2, 1]
    assert rank_gallery(three, [1, 2, 1], three, [1, 2, 1], self_pairs).first_match.tolist() == [2, 0, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_an_error(bad):
    two = unit(np.ones((2, 2)))
    spoilt = two.copy()
    spoilt[1, 0] = bad
    assert failure(spoilt, [1, 1], two, [1, 1]) == ("features-not-finite", "row 2 of the query")
    assert failure(two, [1, 1], spoilt, [1, 1]) == ("features-not-finite", "row 2 of the gallery")


def failure(*arguments):
    """Code and place of the error that the ranking raises."""
    with pytest.raises(EvaluationError) as caught:
        rank_gallery(*arguments)
    return caught.value.code, caught.value.where


def test_features_that_are_not_unit_are_an_error(monkeypatch):
    from paddlex_feat.evaluation.ranking import exact_dot as module

    monkeypatch.setattr(module, "_CHUNK_VALUES", 4)  # two rows at a time
    rows = unit(np.random.default_rng(0).standard_normal((5, 2)))
    rows[1] = 0  # the feature of a network that outputs zeros
    rank_gallery(rows, [1] * 5, rows, [1] * 5)
    rows[3] *= 1.01
    assert failure(rows, [1] * 5, rows[:3], [1] * 3) == ("features-not-unit", "row 4 of the query")
    assert failure(rows[:3], [1] * 3, rows, [1] * 5) == ("features-not-unit", "row 4 of the gallery")


def test_a_gallery_smaller_than_k():
    one = unit(np.ones((1, 2)))
    assert retrieval_metrics(one, [1], one, [1]).recall == {1: 1.0, 5: 1.0}


def test_an_error_of_a_thread_ends_the_ranking(monkeypatch):
    """And does not leave the other threads waiting for its buffer."""
    query, ql, gallery, gl = many("trained")
    monkeypatch.setattr(ranks_module, "ROWS", 5)
    monkeypatch.setattr(tiles.Block, "count_tile", lambda *_: np.empty(2**50))
    with pytest.raises(MemoryError):
        rank_gallery(query, ql, gallery, gl, threads=2)


def test_shapes_and_labels_that_do_not_fit_are_errors():
    two, long = np.ones((2, 2), np.float32), np.ones((2, 2**13 + 1), np.float32)
    for query, gallery in ((two, two[:0]), (two, two[:, :1]), (long, long), (two[0], two)):
        assert failure(query, [1, 1], gallery, [1] * len(gallery))[0] == "feature-shapes"
    for ql, gl in (([1], [1, 2]), ([1, 2], [1, 2, 3]), ([1.5, 2], [1, 2]), (["a", "b"], [1, 2])):
        assert failure(two, ql, two, gl)[0] == "label-shapes"


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


@pytest.mark.parametrize("queries", [1, 511, 1100])
def test_first_hits_are_the_first_ranks_of_the_whole_ranking(queries):
    rng = np.random.default_rng(queries)
    gallery, labels = unit(rng.normal(size=(300, 16))).astype(np.float32), rng.integers(0, 30, 300)
    query, query_labels = unit(rng.normal(size=(queries, 16))).astype(np.float32), rng.integers(0, 40, queries)
    query[:50], query_labels[:50] = gallery[: min(50, queries)], labels[: min(50, queries)]
    pairs = np.stack([np.arange(min(50, queries))] * 2, axis=1)
    for left_out in (None, pairs):
        ranks = rank_gallery(query, query_labels, gallery, labels, left_out).first_match
        assert np.array_equal(first_hits(query, query_labels, gallery, labels, left_out), ranks[ranks > 0] == 1)


def test_a_tie_with_another_class_is_no_first_hit():
    rows = np.eye(3, dtype=np.float32)[[0, 0, 1]]
    assert first_hits(rows[:1], np.array([7]), rows, np.array([7, 8, 7])).tolist() == [0.0]
    assert first_hits(rows[2:], np.array([9]), rows, np.array([7, 8, 7])).tolist() == []
