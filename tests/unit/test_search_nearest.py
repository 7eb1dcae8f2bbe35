"""The nearest features: exact by every way, after any changes, equal ones in order of their ids."""

from __future__ import annotations

import numpy as np
import pytest

from paddlex_feat.evaluation.ranking.largest import largest
from paddlex_feat.search import nearest as module
from paddlex_feat.search.nearest import Nearest


def unit(rng: np.random.Generator, count: int, dimension: int, clusters: int = 0) -> np.ndarray:
    """Unit rows; around a few centres, if wished, as features are."""
    rows = rng.standard_normal((count, dimension))
    if clusters:
        rows = 0.3 * rows + 3 * rng.standard_normal((clusters, dimension))[rng.integers(0, clusters, count)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def brute_force(known: dict[int, np.ndarray], queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """By all similarities in float64, sorted."""
    ids = np.array(sorted(known), np.int64)
    rows = np.stack([known[i] for i in ids.tolist()]).astype(np.float64)
    similar = np.stack([np.einsum("nd,d->n", rows, query.astype(np.float64)) for query in queries])
    order = np.argsort(-similar, axis=1, kind="stable")[:, :k]
    return ids[order], np.take_along_axis(similar, order, axis=1)


@pytest.fixture(params=[True, False], ids=["8 bit", "float32"])
def quick(request, monkeypatch) -> bool:
    """Whether the 8-bit form is made; blocks are small, so that there are many."""
    if request.param:
        pytest.importorskip("faiss")
    monkeypatch.setattr(module, "BLOCK", 256)
    return request.param


@pytest.mark.parametrize("clusters", [0, 20])
@pytest.mark.parametrize("count", [1, 255, 256, 3000])
def test_the_nearest_are_those_of_brute_force(quick, clusters, count):
    rng = np.random.default_rng(count + clusters)
    rows = unit(rng, count, 48, clusters)
    rows[count // 2 :: 7] = rows[0]  # copies are in order of their ids
    found = Nearest(48, quick)
    ids = rng.permutation(10 * count)[:count] + 1
    found.add(ids, rows)
    known = dict(zip(ids.tolist(), rows, strict=True))
    queries = np.concatenate([unit(rng, 12, 48, clusters), rows[:8]])
    for k in (1, 10, 500):
        expected = brute_force(known, queries, k)
        for some in (queries, queries[:3]):  # by a matrix product, one by one
            got = found.search(some, k)
            assert (got[0] == expected[0][: len(some)]).all() and (got[1] == expected[1][: len(some)]).all()


def test_any_changes_leave_what_is_there(quick):
    rng = np.random.default_rng(3)
    found, known, last = Nearest(16, quick), {}, 0
    for step in range(60):
        rows = unit(rng, int(rng.integers(1, 200)), 16, 5)
        fresh = np.arange(last + 1, last + len(rows) + 1)
        last += len(rows)
        if known and step % 3:
            fresh[: len(rows) // 2] = rng.choice(np.array(sorted(known)), len(rows) // 2)  # replaced, some twice
            fresh, first = np.unique(fresh, return_index=True)
            rows = rows[first]
        found.add(fresh, rows)
        known |= dict(zip(fresh.tolist(), rows, strict=True))
        gone = rng.choice(np.array(sorted(known)), len(known) // 4, replace=False).tolist()
        found.remove([*gone, 10**9])
        for i in gone:
            del known[i]
        assert len(found) == len(known)
    queries = unit(rng, 10, 16, 5)
    expected = brute_force(known, queries, 20)
    for some in (queries, queries[:2]):
        got = found.search(some, 20)
        assert (got[0] == expected[0][: len(some)]).all() and (got[1] == expected[1][: len(some)]).all()
    held = np.concatenate([ids for ids, _ in found.rows()])
    assert sorted(held.tolist()) == sorted(known)


def test_what_rows_has_given_stays_as_it_was(quick):
    rng = np.random.default_rng(6)
    rows, nearest = unit(rng, 600, 8), Nearest(8, quick)
    nearest.add(np.arange(600), rows)
    given = list(nearest.rows())
    nearest.remove(list(range(0, 600, 2)))
    nearest.add(np.arange(600, 900), unit(rng, 300, 8))
    ids = np.concatenate([part for part, _ in given])
    assert (ids == np.arange(600)).all() and (np.concatenate([part for _, part in given]) == rows).all()
    found, _ = nearest.search(rows[1::2], 1)
    assert (found[:, 0] == np.arange(1, 600, 2)).all() and len(nearest) == 600


def test_nothing_is_near_in_an_empty_gallery(quick):
    ids, similarity = Nearest(8, quick).search(unit(np.random.default_rng(0), 3, 8), 5)
    assert ids.shape == similarity.shape == (3, 0)


def test_many_features_that_are_nearly_equal_are_all_compared(quick):
    """So many are as near as rounding can tell apart that the first candidates are not enough."""
    rng = np.random.default_rng(5)
    centre = unit(rng, 1, 32)
    rows = centre + 1e-7 * rng.standard_normal((2000, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    found = Nearest(32, quick)
    found.add(np.arange(2000), rows)
    queries = np.repeat(centre, 9, axis=0)
    expected = brute_force(dict(enumerate(rows)), queries, 10)
    for some in (queries, queries[:1]):
        got = found.search(some, 10)
        assert (got[0] == expected[0][: len(some)]).all() and (got[1] == expected[1][: len(some)]).all()


@pytest.mark.parametrize(("count", "width", "k"), [(3, 5, 5), (4, 1000, 7), (2, 10_001, 42), (1, 64, 1)])
def test_the_largest_of_each_row(count, width, k):
    values = np.random.default_rng(width).standard_normal((count, width)).astype(np.float32)
    places = largest(values, k)
    expected = np.sort(values, axis=1)[:, width - k :]
    assert (np.sort(np.take_along_axis(values, places, axis=1), axis=1) == expected).all()
