"""What a ranking says beyond its means, by hand and against brute force."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import ROOT

from paddlex_feat.evaluation import analysis
from paddlex_feat.evaluation.analysis import (
    class_scores,
    confusions,
    pair_similarities,
    recall1_interval,
    unmatched_classes,
)
from paddlex_feat.evaluation.threshold import PRECISIONS, threshold_curve, thresholds

FIRST = np.array([1, 3, 2, 1, 0, 4, 1])
LABELS = np.array([7, 7, 8, 8, 5, 9, 6])


def test_classes_by_hand():
    scores = class_scores(FIRST, np.array([1, 0.4, 0.5, 1, 0, 0.25, 1]), LABELS)
    assert [(c.label, c.queries, c.recall1, c.failure) for c in scores] == [
        (9, 1, 0, 5),
        (7, 2, 0.5, 1),
        (8, 2, 0.5, 2),
        (6, 1, 1, None),
    ]
    assert [c.mean_ap for c in scores] == pytest.approx([0.25, 0.7, 0.75, 1])
    assert unmatched_classes(FIRST, LABELS) == {5: 1}


def test_of_equal_classes_the_larger_comes_first():
    first, labels = np.array([2, 2, 2, 2]), np.array([1, 2, 2, 0])
    assert [c.label for c in class_scores(first, np.ones(4), labels)] == [2, 0, 1]


def test_the_failure_of_a_class_is_its_lowest_and_then_its_first():
    scores = class_scores(np.array([2, 5, 5, 1]), np.ones(4), np.zeros(4, int))
    assert scores[0].failure == 1


def test_confusions_by_hand():
    taken_for = np.array([7, 8, 7, 8, 9, 7, 6])
    found = confusions(FIRST, LABELS, taken_for)
    assert [(c.label, c.taken_for, c.count, c.query) for c in found] == [(7, 8, 1, 1), (8, 7, 1, 2), (9, 7, 1, 5)]
    assert confusions(np.array([1, 0]), np.array([1, 2]), np.array([1, 1])) == []


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)), max_size=30))
def test_confusions_and_classes_are_what_counting_gives(rows):
    first, labels, taken_for = (np.array([row[i] for row in rows], np.int64) for i in range(3))
    counts: dict[tuple[int, int], list[int]] = {}
    for q, (rank, label, other) in enumerate(rows):
        if rank > 1:
            counts.setdefault((label, other), []).append(q)
    expected = sorted((-len(qs), *pair, qs[0]) for pair, qs in counts.items())
    assert [(-c.count, c.label, c.taken_for, c.query) for c in confusions(first, labels, taken_for)] == expected
    ranks: dict[int, list[int]] = {}
    for rank, label, _ in rows:
        if rank:
            ranks.setdefault(label, []).append(rank)
    by_hand = sorted((sum(r == 1 for r in rs) / len(rs), -len(rs), label) for label, rs in ranks.items())
    got = class_scores(first, np.ones(len(rows)), labels)
    assert [(c.recall1, -c.queries, c.label) for c in got] == by_hand


def test_the_interval_is_that_of_a_bootstrap_query_by_query():
    """The second route: draw queries with replacement, and take the mean of each resample."""
    right = np.repeat([1.0, 0.0], [140, 60])
    drawn = np.random.default_rng(1).integers(0, 200, (10_000, 200))
    expected = np.percentile(right[drawn].mean(axis=1), (2.5, 97.5))
    assert recall1_interval(140, 200) == pytest.approx(expected, abs=0.006)
    assert recall1_interval(140, 200) == recall1_interval(140, 200)
    low, high = recall1_interval(140, 200)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.7 * 0.3 / 200), rel=0.05)  # the normal approximation


def test_the_interval_of_all_or_nothing_has_no_width():
    assert recall1_interval(9, 9) == (1, 1) and recall1_interval(0, 9) == (0, 0)


def at(first, similarity, t):
    """Accepted and right queries of a threshold, one by one."""
    accepted = [f for f, s in zip(first, similarity, strict=True) if s >= t]  # nan is never accepted
    return len(accepted), accepted.count(1)


# Sixteenths: exact, with ties, and with a number between any two.
queries = st.lists(st.tuples(st.integers(0, 3), st.one_of(st.integers(-16, 16), st.none())), min_size=1, max_size=25)


@settings(max_examples=300, deadline=None)
@given(queries)
def test_thresholds_are_what_trying_every_one_gives(rows):
    first = [rank if s is not None else 0 for rank, s in rows]
    similarity = [math.nan if s is None else s / 16 for _, s in rows]
    curve = threshold_curve(np.array(first), np.array(similarity))
    matched = sum(f > 0 for f in first)
    assert curve.similarity.tolist() == sorted({s for s in similarity if not math.isnan(s)}, reverse=True)
    tried = []
    for i, t in enumerate(curve.similarity.tolist()):
        accepted, correct = at(first, similarity, t)
        precision, recall = correct / accepted, correct / max(matched, 1)
        f1 = 2 * precision * recall / (precision + recall) if correct else 0
        assert (curve.precision[i], curve.recall[i], curve.f1[i]) == pytest.approx((precision, recall, f1))
        tried.append((t, accepted, correct))
    suggested, *by_precision = thresholds(curve)
    if not any(correct for _, _, correct in tried):
        assert suggested.threshold is None and suggested.f1 is None
    else:
        assert suggested.f1 == pytest.approx(max(2 * c / (a + matched) for _, a, c in tried))
        higher = [2 * c / (a + matched) for t, a, c in tried if t > suggested.threshold][:-1]
        assert all(f1 < suggested.f1 for f1 in higher)
    for precision, row in zip(PRECISIONS, by_precision, strict=True):
        reaching = [a for _, a, c in tried if c / a >= precision]
        assert row.accepted == (max(reaching) if reaching else None)
    for row in (suggested, *by_precision):
        if row.threshold is not None:  # the threshold itself does what its row says
            assert at(first, similarity, row.threshold) == (row.accepted, row.correct)


def test_thresholds_by_hand():
    """An unmatched query at 0.8 is a wrong answer wherever it is accepted, and no lost one where it is not."""
    first, similarity = np.array([1, 1, 0, 2, 1]), np.array([0.9, 0.85, 0.8, 0.5, 0.4])
    curve = threshold_curve(first, similarity)
    assert (
        curve.matched == 4 and curve.accepted.tolist() == [1, 2, 3, 4, 5] and curve.correct.tolist() == [1, 2, 2, 2, 3]
    )
    suggested, p95, p99 = thresholds(curve)
    # F1: 2/5, 4/6, 4/7, 4/8, 6/9. The second and the last are equal, and the higher threshold is taken.
    assert (suggested.accepted, suggested.threshold) == (2, pytest.approx(0.825))
    assert p95.threshold == p99.threshold == pytest.approx(0.825) and p95.precision == 1


def test_everything_right_accepts_every_query():
    suggested, p95, p99 = thresholds(threshold_curve(np.ones(3, int), np.array([0.9, 0.7123, 0.8])))
    assert {row.threshold for row in (suggested, p95, p99)} == {0.712} and suggested.f1 == 1


def test_everything_wrong_suggests_nothing():
    rows = thresholds(threshold_curve(np.array([2, 3, 0]), np.array([0.9, 0.7, 0.8])))
    assert [row.threshold for row in rows] == [None] * 3
    nothing = threshold_curve(np.array([0]), np.array([math.nan]))
    assert len(nothing.similarity) == 0 and thresholds(nothing)[0].threshold is None


def features(count, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 4)).astype(np.float32), rng.integers(0, 3, count)


def test_pairs_are_all_of_them_but_the_own_ones(monkeypatch):
    monkeypatch.setattr(analysis, "_BLOCK", 3)
    (query, ql), (gallery, gl) = features(7, 0), features(10, 1)
    own = np.array([[0, 3], [6, 9]])
    pairs = pair_similarities(query, ql, gallery, gl, own)
    matching, other = [], []
    for q in range(7):
        for g in range(10):
            if [q, g] not in own.tolist():
                (matching if ql[q] == gl[g] else other).append(float(query[q].astype(float) @ gallery[g].astype(float)))
    assert pairs.matching == pytest.approx(matching, abs=1e-12) and pairs.other == pytest.approx(other, abs=1e-12)
    assert (pairs.queries, pairs.gallery, pairs.sampled) == (7, 10, False)


def test_many_pairs_are_sampled_without_the_own_ones(monkeypatch, tmp_path):
    monkeypatch.setattr(analysis, "MAX_PAIRS", 60)
    monkeypatch.setattr(analysis, "SAMPLE", 8)
    (query, ql), (gallery, gl) = features(7, 0), features(10, 1)
    query[:, 0] = np.arange(7)
    query[:, 1:], gallery[:, 1:], gallery[:, 0] = 0, 0, 10.0 ** np.arange(10)
    stored = np.memmap(tmp_path / "f", np.float32, "w+", shape=gallery.shape)
    stored[:] = gallery
    every = pair_similarities(query, ql, stored, gl)
    assert (every.queries, every.gallery, every.sampled) == (7, 8, True)
    matches = {(q, g) for q in range(7) for g in range(10) if ql[q] == gl[g]}
    assert sorted(every.matching) == sorted(q * 10.0**g for q, g in matches)  # all, for none has more than MATCHES
    assert 0 < len(every.other) < 56 and not set(every.other) & {q * 10.0**g for q, g in matches if q}
    own = np.stack(np.meshgrid([2, 5], np.arange(10)), axis=-1).reshape(-1, 2)  # all of queries 2 and 5
    some = pair_similarities(query, ql, stored, gl, own)
    left = np.concatenate([some.matching, some.other])
    assert {str(int(v))[0] for v in left if v} == {"1", "3", "4", "6"}
    assert sorted(some.matching) == sorted(q * 10.0**g for q, g in matches if q not in (2, 5))
    monkeypatch.setattr(analysis, "MATCHES", 1)
    assert len(pair_similarities(query, ql, stored, gl).matching) == len({q for q, _ in matches})


@pytest.mark.parametrize("last", [1.0000000000000002, 0.9369999999999999, 0.123456])
def test_a_threshold_accepts_what_it_says(last):
    """The middle of two neighbouring numbers is one of them, and a number rounded down may be above itself."""
    for below in ([np.nextafter(last, 0)], []):
        similarity = np.array([last, *below])
        curve = threshold_curve(np.array([1, 2][: len(similarity)]), similarity)
        found = thresholds(curve)[0]
        assert np.count_nonzero(similarity >= found.threshold) == found.accepted == 1


def test_metrics_need_neither_paddle_nor_opencv_nor_matplotlib():
    """The names of the package are imported when they are used; figures need NumPy alone."""
    code = (
        "import sys, paddlex_feat.evaluation as evaluation; assert 'numpy' not in sys.modules\n"
        "assert callable(evaluation.retrieval_metrics) and callable(evaluation.rank_gallery)\n"
        "import paddlex_feat.evaluation.analysis, paddlex_feat.evaluation.threshold\n"
        "print(sorted({'paddle', 'cv2', 'matplotlib', 'paddlex_feat.reports'} & set(sys.modules)))\n"
        "assert set(evaluation.__all__) <= set(dir(evaluation))\n"
        "for name in evaluation.__all__: getattr(evaluation, name)\n"
        "print(sorted({'paddle', 'matplotlib', 'paddlex_feat.reports'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"], done.stdout + done.stderr
