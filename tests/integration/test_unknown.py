"""The threshold "auto" keeps its promise: of objects that are not in the gallery, few get an answer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from paddlex_feat.inference.predictor import create_model
from paddlex_feat.search.calibrate import SURE, WRONG, calibrate
from paddlex_feat.search.nearest import Nearest

DRAWS = 200


@pytest.fixture(scope="module")
def features(faces) -> tuple[np.ndarray, np.ndarray]:
    """Starter's features of the 400 photographs of ORL, and who is on each."""
    files = sorted((faces / "images").glob("s*/*.pgm"))
    model = create_model("EfficientNet_Lite0_rec", device="cpu", batch_size=16)
    rows = np.stack([result.feature for result in model.predict(list(map(str, files)))])
    return rows, np.array([int(Path(f).parent.name[1:]) for f in files])


@pytest.mark.slow
@pytest.mark.parametrize("photographs", [10, 3, 1])
def test_half_of_the_people_are_unknown(features, photographs):
    rows, people = features
    similar = rows @ rows.T
    wrong, known = np.empty(DRAWS), np.empty(DRAWS)
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        half = rng.permutation(np.unique(people))[:20]
        inside = np.isin(people, half)
        taken = np.concatenate([rng.permutation(np.flatnonzero(people == p))[:photographs] for p in half])
        gallery = Nearest(rows.shape[1], quick=False)
        gallery.add(taken, rows[taken])
        found = calibrate(list(gallery.rows()), {int(i): str(people[i]) for i in taken})
        best = similar[:, taken].max(axis=1)
        wrong[seed] = (best[~inside] >= found.threshold).mean()
        others = np.setdiff1d(np.flatnonzero(inside), taken)
        known[seed] = (best[others] >= found.threshold).mean() if len(others) else 1
    assert (wrong <= WRONG).mean() >= 0.95 and found.confidence == 0.95
    assert known.mean() > 0.25  # it is not kept by answering nothing


def test_few_classes_are_no_promise_and_one_is_no_threshold():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((30, 16)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    gallery = Nearest(16, quick=False)
    gallery.add(np.arange(30), rows)
    assert (
        calibrate(list(gallery.rows()), dict.fromkeys(range(30), "one")) is None
        and calibrate(list(gallery.rows()), {}) is None
    )
    few = calibrate(list(gallery.rows()), {i: str(i % (SURE - 1)) for i in range(30)})
    assert few.confidence == 0 and -1 <= few.threshold <= 1
    some = calibrate(list(gallery.rows()), {i: str(i % SURE) for i in range(20)})  # ten images have no label
    assert some.confidence == 0.95 and some.classes == SURE and some.images == 20


def test_copies_in_two_classes_raise_the_threshold():
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((60, 32)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    thresholds = []
    for copies in (0, 6):
        given = rows.copy()
        given[:copies] = rows[30 : 30 + copies]
        gallery = Nearest(32, quick=False)
        gallery.add(np.arange(60), given)
        thresholds.append(calibrate(list(gallery.rows()), {i: str(i // 2) for i in range(60)}).threshold)
    assert thresholds[0] < thresholds[1] <= 1
