"""What could be better about the labels of a gallery: too few images, misplaced ones, more than are needed.

Each image is asked with itself left out. It is misplaced if its nearest image has another label. Where it is answered
rightly, images of its own label that are nearer to it than any image of another label answer it too, whichever of the
others are there; so of each label a few images are enough that answer all others of it (the minimal consistent set of
Dasarathy, IEEE Transactions on Systems, Man and Cybernetics 24, 1994, by a greedy choice). A gallery of these alone
gives every image that is left out the label that the whole gallery gives it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlex_feat.evaluation.ranking.neighbours import find_neighbours
from paddlex_feat.search.backend import Rows

FEW = 2  # images of a label below which no other image of it confirms an answer
MAX_IMAGES = 50_000  # with labels; comparing more with each other takes minutes
_PART = 8192  # images of a label that are compared with each other at once


@dataclass(frozen=True)
class LabelAdvice:
    """Advice for a label.

    Attributes:
        label: its name.
        images: of it.
        misplaced: ids of images whose nearest image has another label.
        confused: that label, of most of them; None: there are none.
        needed: ids of the fewest images that answer the others rightly, and of the misplaced ones.
    """

    label: str
    images: int
    misplaced: list[int]
    confused: str | None
    needed: list[int]

    @property
    def texts(self) -> list[str]:
        """For people."""
        texts = []
        if self.images < FEW:
            texts.append("add images: no other one confirms an answer")
        if self.misplaced:
            texts.append(f"look at {len(self.misplaced)}: nearer to {self.confused}")
        if self.images > len(self.needed):
            texts.append(f"{len(self.needed)} of {self.images} are enough")
        return texts

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "label": self.label,
            "images": self.images,
            "misplaced": self.misplaced,
            "confused_with": self.confused,
            "needed": self.needed,
            "advice": "; ".join(self.texts),
        }


def advise(rows: Rows, labels: Mapping[int, str]) -> list[LabelAdvice] | None:
    """Advice for each label, in their order; None for more than MAX_IMAGES images.

    Args:
        rows: the features.
        labels: label by id; images without one are left out.
    """
    ids = np.concatenate([part for part, _ in rows]) if rows else np.empty(0, np.int64)
    there = np.array([i in labels for i in ids.tolist()], bool)
    if np.count_nonzero(there) > MAX_IMAGES:
        return None
    if not there.any():
        return []
    features = np.concatenate([part for _, part in rows])[there]
    order = np.argsort(ids[there])
    ids, features = ids[there][order], features[order]
    names, classes = np.unique([labels[i] for i in ids.tolist()], return_inverse=True)
    near = find_neighbours(features, classes, 1, 1)
    enemy, nearest_enemy = near.other_similarity[:, 0], near.other[:, 0]
    wrong = (near.own[:, 0] >= 0) & (enemy > near.own_similarity[:, 0])
    found = []
    for number, name in enumerate(names.tolist()):
        members = np.flatnonzero(classes == number)
        bad = members[wrong[members]]
        good = members[~wrong[members]]
        confused = None
        if len(bad):
            others, counts = np.unique(classes[nearest_enemy[bad]], return_counts=True)
            confused = str(names[others[counts.argmax()]])
        kept = [ids[good[place]] for place in _fewest(features[good], enemy[good])]
        needed = sorted(int(i) for i in (*kept, *ids[bad]))
        found.append(LabelAdvice(str(name), len(members), ids[bad].tolist(), confused, needed))
    return found


def _fewest(rows: np.ndarray, enemy: np.ndarray) -> list[int]:
    """Places of few rows of a label that answer all others of it: each is nearer to one of them than to its `enemy`.

    A row that nothing else answers stays.
    """
    kept: list[int] = []
    for first in range(0, len(rows), _PART):
        part, limits = rows[first : first + _PART], enemy[first : first + _PART]
        answers = part @ part.T > limits[:, None]  # [asked, answering]
        np.fill_diagonal(answers, True)
        open_rows = np.ones(len(part), bool)
        counts = answers.sum(axis=0)
        while open_rows.any():
            best = int(counts.argmax())
            kept.append(first + best)
            answered = open_rows & answers[:, best]
            counts -= answers[answered].sum(axis=0)
            open_rows &= ~answered
    return kept
