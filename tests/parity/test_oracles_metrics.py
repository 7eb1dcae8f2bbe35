"""Metrics against scikit-learn and pytorch-metric-learning, on the same features."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.oracles import ask

from paddlex_feat.evaluation.metrics import metrics_of
from paddlex_feat.evaluation.ranking.ranks import rank_gallery

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("noise", [0.8, 2.0, 20.0])
def test_the_metrics_are_theirs(tmp_path, noise):
    """Without ties, for which each of the three has a rule of its own; with queries that have no match.

    Components are multiples of 2^-26, to which `exact_dot` rounds: all three then have the same similarities.
    """
    rng = np.random.default_rng(3)
    query_labels, gallery_labels = rng.integers(0, 50, 200), rng.integers(5, 50, 1500)
    centres = rng.standard_normal((50, 64))
    query, gallery = (
        centres[labels] + noise * rng.standard_normal((len(labels), 64)) for labels in (query_labels, gallery_labels)
    )
    unit = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32) for x in (query, gallery))
    query, gallery = (np.round(x * 2**26) / 2**26 for x in unit)  # as they are ranked; still float32
    query, gallery = query.astype(np.float32), gallery.astype(np.float32)
    np.savez(
        tmp_path / "features.npz",
        query=query,
        query_labels=query_labels,
        gallery=gallery,
        gallery_labels=gallery_labels,
    )
    ask("metrics", "other_metrics.py", tmp_path)
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    ranking = rank_gallery(query, query_labels, gallery, gallery_labels)
    ours = metrics_of(ranking)
    assert 0 < ours.unmatched_queries == np.count_nonzero(query_labels < 5)
    assert ranking.average_precision[ranking.first_match > 0] == pytest.approx(theirs["average_precision"], rel=1e-12)
    names = ("mean_average_precision", "mean_average_precision_at_r", "mean_reciprocal_rank", "precision_at_1")
    assert [ours.mean_ap, ours.mean_ap_at_r, ours.mrr, ours.recall[1]] == pytest.approx(
        [theirs[name] for name in names], abs=1e-5
    )
