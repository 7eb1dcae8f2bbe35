"""Labels exchanged at random: found as well as cleanlab finds them on the same features of real photographs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.oracles import ask
from support.starter import needs_starter

from paddlex_feat.checks.label_space import LabelSpace
from paddlex_feat.data.readers import require_lists

pytestmark = [pytest.mark.slow, needs_starter]
DRAWS, WRONG, FIRST = 2, 0.05, 0.06


def exchanged(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The labels with WRONG of them exchanged for others, and which."""
    rng, given = np.random.default_rng(seed), labels.copy()
    wrong = rng.choice(len(labels), round(WRONG * len(labels)), replace=False)
    classes = int(labels.max()) + 1
    given[wrong] = (labels[wrong] + rng.integers(1, classes, len(wrong))) % classes
    return given, wrong


def found(scores: np.ndarray, wrong: np.ndarray) -> float:
    """Share of the wrong labels among the FIRST of the ranking, the highest scores first."""
    first = np.argsort(-scores)[: round(FIRST * len(scores))]
    return float(np.isin(wrong, first).mean())


@pytest.mark.nightly
def test_exchanged_labels_are_found_as_well_as_by_cleanlab(faces, tmp_path):
    pytest.importorskip("paddle")
    from paddlex_feat import create_model

    lists = require_lists(str(faces))
    files = [file for records in lists.values() for file in records.files()]
    labels = np.concatenate([records.labels for records in lists.values()])
    rows = np.stack([result["feature"] for result in create_model("EfficientNet_Lite0_rec").predict(files)])
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    draws = [exchanged(labels, seed) for seed in range(DRAWS)]
    np.savez(tmp_path / "features.npz", features=rows, labels=np.stack([given for given, _ in draws]))
    ask("metrics", "cleanlab_ranks.py", tmp_path)
    theirs = json.loads((tmp_path / "theirs.json").read_text())
    ours = [found(LabelSpace([], rows, given).nearest.score, wrong) for given, wrong in draws]
    others = [found(-np.array(scores), wrong) for scores, (_, wrong) in zip(theirs, draws, strict=True)]
    assert np.mean(ours) >= max(0.9, float(np.mean(others)))
