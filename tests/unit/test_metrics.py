"""Ranks and retrieval metrics against brute force in float64."""

from __future__ import annotations

from fractions import Fraction
from operator import mul

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from paddlex_feat.errors import EvaluationError
from paddlex_feat.evaluation.metrics import metrics_of, retrieval_metrics
from paddlex_feat.evaluation.ranking import rank as rank_module
from paddlex_feat.evaluation.ranking import rank_counter, tiles
from paddlex_feat.evaluation.ranking.exact_dot import Features, error_bound, exact, split
from paddlex_feat.evaluation.ranking.rank import Ranking, rank
from paddlex_feat.reports.query_sheets import choose_queries


def brute_force(query, query_labels, gallery, gallery_labels, own=(), ks=(1, 3, 5)):
    """Sort every row, ties against us, and walk down the list."""
    hits, ap, ap_at_r, rr, firsts, orders = {k: [] for k in ks}, [], [], [], [], []
    left_out = {tuple(pair) for pair in np.asarray(own).tolist()}
    for i, (q, label) in enumerate(zip(query.astype(np.float64), query_labels, strict=True)):
        rows = sorted(
            (-float(q @ g), bool(gl == label), gl, j)
            for j, (g, gl) in enumerate(zip(gallery.astype(np.float64), gallery_labels, strict=True))
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
    """Small integers: full of ties, duplicates, zero rows, negative similarities and classes without a match."""
    rng = np.random.default_rng(seed)
    query, gallery = np.array(query, np.float32), np.array(gallery, np.float32)
    if data.draw(st.booleans(), "all similarities negative"):
        query, gallery = abs(query) + 1, -abs(gallery) - 1
    query_labels, gallery_labels = rng.integers(0, 4, len(query)), rng.integers(0, 4, len(gallery))
    own = rng.integers(0, (len(query), len(gallery)), (data.draw(st.integers(0, 3), "own files"), 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rank_module, "COLUMNS", block)
        patch.setattr(rank_module, "ROWS", data.draw(st.sampled_from([1, 7, 1000]), "rows of a product"))
        patch.setattr(rank_module, "QUERIES", data.draw(st.sampled_from([1, 7, 1000]), "queries at a time"))
        patch.setattr(rank_counter, "_HEAVY", data.draw(st.sampled_from([0.01, 16, 1e9]), "when float64 takes over"))
        got = rank(query, query_labels, gallery, gallery_labels, own, threads=data.draw(st.sampled_from([1, 3])))
    recall, *means, firsts, orders = brute_force(query, query_labels, gallery, gallery_labels, own)
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


def unit(rows):
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


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
    elif kind == "long":  # rows of very different lengths, from float32's smallest to its largest numbers
        query, gallery = (
            query * 10 ** rng.uniform(-43, 37, (queries, 1)),
            gallery * 10 ** rng.uniform(33, 37, (images, 1)),
        )
        return query.astype(np.float32), ql, gallery.astype(np.float32), gl
    return unit(query), ql, unit(gallery), gl


def plain(query, ql, gallery, gl):
    """First match and average precision by sorting whole rows, of sums in 80 bits that are rounded to float64."""
    first, precision = np.zeros(len(query), np.int64), np.zeros(len(query))
    wide = gallery.astype(np.longdouble)
    for i, q in enumerate(query.astype(np.longdouble)):
        scores = (wide * q).sum(axis=1).astype(np.float64)  # no matrix product: copies of an image come out equal
        ranks = np.flatnonzero((gl == ql[i])[np.lexsort((gl == ql[i], -scores))]) + 1
        if len(ranks):
            first[i], precision[i] = ranks[0], np.mean(np.arange(1, len(ranks) + 1) / ranks)
    return first, precision


@pytest.mark.parametrize("kind", ["trained", "random", "close", "collapsed", "duplicates", "long"])
def test_identical_for_every_block_thread_count_and_order(kind, monkeypatch):
    query, ql, gallery, gl = many(kind, images=1500)
    whole = rank(query, ql, gallery, gl)
    first, precision = plain(query, ql, gallery, gl)
    assert np.array_equal(whole.first_match, first) and np.array_equal(whole.average_precision, precision)
    metrics = metrics_of(whole)
    for tile, rows, threads in ((1, 1000, 2), (7, 7, 1), (1000, 1, 3), (100_000, 100_000, 2)):
        monkeypatch.setattr(rank_module, "COLUMNS", tile)
        monkeypatch.setattr(rank_module, "ROWS", rows)
        monkeypatch.setattr(rank_module, "QUERIES", 3 * rows // 2 + 1)
        few = slice(4 if tile == 1 else None)  # a tile of one image is slow
        part = Ranking(*(column[few] for column in vars(whole).values()))
        assert same(rank(query[few], ql[few], gallery, gl, threads=threads), part), (tile, rows)
    rng = np.random.default_rng(1)
    some, others = rng.permutation(len(query)), rng.permutation(len(gallery))
    again = rank(query[some], ql[some], gallery[others], gl[others])
    assert np.array_equal(again.first_match, whole.first_match[some])
    assert np.array_equal(again.similarity, whole.similarity[some], equal_nan=True)
    assert metrics_of(again) == metrics
    part = rank(query[3::7], ql[3::7], gallery, gl)
    assert np.array_equal(part.average_precision, whole.average_precision[3::7])


@pytest.mark.parametrize("dim", [3, 512, 8192])
def test_exact_products_are_exact(dim):
    """Against fractions of the float32 numbers as they are; and with the components in another order."""
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((n, dim)) * 10 ** rng.uniform(-6, 0, (n, dim)) for n in (4, 12))
    y[0] = x[0]
    x, y = (Features.each(v.astype(np.float32), "rows").take(np.arange(len(v))) for v in (x, y))
    numbers = [[[Fraction(float(v)) for v in row] for row in rows] for rows in (x, y)]
    oracle = np.array([[float(sum(map(mul, p, q))) for q in numbers[1]] for p in numbers[0]])
    products = exact(split(x), y)
    assert np.abs(products - oracle).max() <= 2.0**-53 * max(1, np.abs(oracle).max())
    order = rng.permutation(dim)
    assert np.array_equal(exact(split(x[:, order]), y[:, order]), products)


def test_the_smallest_differences_decide():
    """(.6, .8) is nearer to (1, 2**-40) than to (1, 0), and float32 and rounding to 2**-38 cannot tell."""
    query, gallery = np.array([[0.6, 0.8]], np.float32), np.array([[1, 0], [1, 2.0**-40]], np.float32)
    assert rank(query, [1], gallery, [0, 1]).first_match.tolist() == [1]
    assert rank(query, [0], gallery, [0, 1]).first_match.tolist() == [2]


@pytest.mark.parametrize("dim", [3, 64, 512, 2048])
def test_products_keep_their_bound(dim):
    rng = np.random.default_rng(0)
    for shape in (lambda x: x, abs, lambda x: np.ones_like(x), lambda x: np.sort(abs(x))[:, ::-1], lambda x: x**9):
        query, gallery = (Features.each(unit(shape(rng.standard_normal((n, dim)))), "rows") for n in (50, 2000))
        x, y = query.take(np.arange(50)), gallery.take(np.arange(2000))
        truth = exact(split(x), y)
        single, double = x @ y.T, x.astype(np.float64) @ y.astype(np.float64).T
        assert np.abs(single - truth).max() <= error_bound(query, gallery, 2.0**-24) < 2.1 * dim * 2.0**-24
        assert np.abs(double - truth).max() <= error_bound(query, gallery, 2.0**-53) < 1e-9


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
    three = np.ones((3, 2), np.float32)
    got = rank(three[:1], [1], three, [0, 1, 2])
    assert got.first_match.tolist() == [3] and got.nearest.tolist() == [[0, 2, 1, -1, -1]]


def test_the_own_file_is_left_out():
    three = np.array([[1, 0], [1, 0], [0, 1]], np.float32)
    own = np.array([[0, 0], [1, 1], [2, 2]])
    assert rank(three, [1, 2, 1], three, [1, 2, 1]).first_match.tolist() == [2, 2, 1]
    assert rank(three, [1, 2, 1], three, [1, 2, 1], own).first_match.tolist() == [2, 0, 2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_features_that_are_not_finite_are_an_error(bad):
    two, spoilt = np.ones((2, 2), np.float32), np.ones((2, 2), np.float32)
    spoilt[1, 0] = bad
    with pytest.raises(EvaluationError, match="row 2 of the query"):
        rank(spoilt, [1, 1], two, [1, 1])
    with pytest.raises(EvaluationError, match="row 2 of the gallery"):
        rank(two, [1, 1], spoilt, [1, 1])


def test_a_gallery_smaller_than_k():
    one = np.ones((1, 2), np.float32)
    assert retrieval_metrics(one, [1], one, [1]).recall == {1: 1.0, 5: 1.0}


def test_an_error_of_a_thread_ends_the_ranking(monkeypatch):
    """And does not leave the other threads waiting for its buffer."""
    query, ql, gallery, gl = many("trained")
    monkeypatch.setattr(rank_module, "ROWS", 5)
    monkeypatch.setattr(tiles.Block, "see", lambda *_: np.empty(2**50))
    with pytest.raises(MemoryError):
        rank(query, ql, gallery, gl, threads=2)


def test_what_cannot_be_ranked_is_said():
    two, long = np.ones((2, 2), np.float32), np.ones((2, 2**13 + 1), np.float32)
    for query, gallery in ((two, two[:0]), (two, two[:, :1]), (long, long), (two[0], two)):
        with pytest.raises(EvaluationError, match="cannot be compared"):
            rank(query, [1, 1], gallery, [1] * len(gallery))
    for ql, gl in (([1], [1, 2]), ([1, 2], [1, 2, 3]), ([1.5, 2], [1, 2]), (["a", "b"], [1, 2])):
        with pytest.raises(EvaluationError, match="integer labels"):
            rank(two, ql, two, gl)


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
