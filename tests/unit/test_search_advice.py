"""Advice for the labels of a gallery: misplaced images, and the fewest that answer all others."""

from __future__ import annotations

import numpy as np
import pytest
from test_search_nearest import unit

from paddlex_feat.search import advice
from paddlex_feat.search.advice import advise


def gallery(seed: int, classes: int = 8, each: int = 12) -> tuple[list[tuple[np.ndarray, np.ndarray]], dict[int, str]]:
    """Features around a centre for each label, in two pieces, ids from 1 in a random order of the labels."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(classes), each))
    centres = unit(rng, classes, 16)
    rows = centres[codes] + 0.15 * rng.standard_normal((len(codes), 16))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    ids = np.arange(1, len(codes) + 1)
    parts = [(ids[:30], rows[:30]), (ids[30:], rows[30:])]
    return parts, {int(i): f"label {c}" for i, c in zip(ids, codes, strict=True)}


def answers(parts: list[tuple[np.ndarray, np.ndarray]], labels: dict[int, str], kept: set[int]) -> dict[int, str]:
    """The label of the nearest kept image of each image, which is not itself."""
    ids, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    similar = rows.astype(np.float64) @ rows.T.astype(np.float64)
    np.fill_diagonal(similar, -np.inf)
    similar[:, [i not in kept for i in ids.tolist()]] = -np.inf
    return {int(i): labels[int(ids[best])] for i, best in zip(ids, similar.argmax(axis=1), strict=True)}


@pytest.mark.parametrize("seed", range(4))
def test_the_needed_images_give_all_others_the_answers_of_the_whole_gallery(seed):
    parts, labels = gallery(seed)
    found = advise(parts, labels)
    needed = {i for each in found for i in each.needed}
    whole, few = answers(parts, labels, set(labels)), answers(parts, labels, needed)
    assert len(needed) < len(labels) / 2
    assert all(few[i] == whole[i] == labels[i] for i in labels if i not in needed)
    assert [each.label for each in found] == sorted(set(labels.values()))
    assert sum(each.images for each in found) == len(labels)


def test_an_image_under_another_label_is_misplaced_and_never_dropped():
    parts, labels = gallery(9)
    wrong = next(i for i in labels if labels[i] == "label 3")
    labels[wrong] = "label 5"
    by_name = {each.label: each for each in advise(parts, labels)}
    assert by_name["label 5"].misplaced == [wrong] and by_name["label 5"].confused == "label 3"
    assert wrong in by_name["label 5"].needed and wrong not in by_name["label 3"].needed
    assert "look at 1: nearer to label 3" in by_name["label 5"].as_json()["advice"]


def test_few_images_none_and_too_many(monkeypatch):
    parts, labels = gallery(1)
    assert advise([], {}) == advise(parts, {}) == []
    alone = advise(parts, {1: "only", 2: "two", 3: "two"})
    assert alone[0].texts[0].startswith("add images") and alone[0].needed == [1]
    monkeypatch.setattr(advice, "_PART", 5)
    assert {i for each in advise(parts, labels) for i in each.needed}
    monkeypatch.setattr(advice, "MAX_IMAGES", 10)
    assert advise(parts, labels) is None
