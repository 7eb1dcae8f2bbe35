"""Choose the similarity threshold above which the top-1 answer is accepted. NumPy only.

PaddleX's retrieval pipeline answers with the label of the nearest gallery image if its similarity
is at least `rec_threshold`, and with nothing otherwise. Of a threshold t, then:

    accepted  = queries whose nearest similarity is at least t
    precision = accepted queries whose nearest image is of their class / accepted queries
    recall    = the same queries / queries that have a gallery image of their class
    F1        = harmonic mean of the two

A query without a gallery image of its class is wrong whenever it is accepted; a threshold serves to reject such
queries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

PRECISIONS = (0.95, 0.99)  # goals besides the largest F1


@dataclass(frozen=True)
class ThresholdCurve:
    """A point for each similarity that occurs, highest first; equal similarities are one point.

    Attributes:
        similarity: float64 [N], nearest similarities; queries with this similarity are still accepted.
        accepted, correct: int64 [N], queries accepted there, and those of them that are right.
        matched: queries with a gallery image of their class.
    """

    similarity: np.ndarray
    accepted: np.ndarray
    correct: np.ndarray
    matched: int

    @property
    def precision(self) -> np.ndarray:
        """float64 [N]."""
        share: np.ndarray = self.correct / self.accepted
        return share

    @property
    def recall(self) -> np.ndarray:
        """float64 [N]."""
        return self.correct / max(self.matched, 1)

    @property
    def f1(self) -> np.ndarray:
        """float64 [N]: 2PR / (P + R) = 2 correct / (accepted + matched), which is never 0 / 0."""
        score: np.ndarray = 2 * self.correct / (self.accepted + self.matched)
        return score


@dataclass(frozen=True)
class Threshold:
    """A threshold and its figures, all None if no threshold reaches the goal."""

    goal: str
    threshold: float | None = None
    accepted: int | None = None
    correct: int | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


def threshold_curve(first_match: np.ndarray, similarity: np.ndarray) -> ThresholdCurve:
    """The curve of all thresholds.

    Args:
        first_match: int64 [Q], as in `Ranking`.
        similarity: float64 [Q], of each query's nearest gallery image; nan where it has none.
    """
    near = ~np.isnan(similarity)
    order = np.argsort(-similarity[near], kind="stable")
    values, right = similarity[near][order], (first_match[near] == 1)[order]
    ends = np.flatnonzero(np.append(values[1:] != values[:-1], True)) if len(values) else np.empty(0, np.int64)
    return ThresholdCurve(values[ends], ends + 1, np.cumsum(right)[ends], int(np.count_nonzero(first_match > 0)))


def thresholds(curve: ThresholdCurve) -> list[Threshold]:
    """The threshold of the largest F1, which is the suggested one, then the lowest that reaches each of `PRECISIONS`.

    At equal F1 the higher threshold is taken. If every nearest image is right, all queries are accepted; if every one
    is wrong, no threshold helps and none is returned.
    """
    best = int(np.argmax(curve.f1)) if curve.correct.any() else None  # the first of equal ones is the highest
    rows = [_at(curve, "largest F1", best)]
    for precision in PRECISIONS:
        reached = np.flatnonzero(curve.precision >= precision)
        rows.append(_at(curve, f"precision {precision}", int(reached[-1]) if len(reached) else None))
    return rows


def _at(curve: ThresholdCurve, goal: str, point: int | None) -> Threshold:
    """The threshold that accepts this point and those above it.

    It is the middle between the point and the next similarity below, so that other rounding of the similarities changes
    no decision. For the last point, which has none below, it is the similarity rounded down to three places.
    """
    if point is None:
        return Threshold(goal)
    last = float(curve.similarity[point])
    following = curve.similarity[point + 1 : point + 2].tolist()
    return Threshold(
        goal,
        _between(following[0], last) if following else min(math.floor(last * 1000) / 1000, last),
        int(curve.accepted[point]),
        int(curve.correct[point]),
        float(curve.precision[point]),
        float(curve.recall[point]),
        float(curve.f1[point]),
    )


def _between(below: float, last: float) -> float:
    """The middle, or `last` if rounding would make it equal to `below`, which is not accepted."""
    middle = (below + last) / 2
    return middle if middle > below else last
