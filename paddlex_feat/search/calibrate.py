"""A similarity below which an answer is "unknown", found on the gallery itself.

Each image is asked as if its class were not in the gallery: its best similarity to images of the other classes is what
an unknown object would reach. An answer is wrong where this is at least the threshold. Images of a class resemble each
other, so the class is the unit: with w the share of wrong answers of a class, and C classes, the threshold is the
lowest with

    mean(w) + t * std(w) * sqrt(1 / C + 1 / C) <= WRONG

t the CONFIDENCE quantile of Student's distribution with C - 1 degrees of freedom: the bound of a prediction for as many
new classes (Hahn, "Factors for calculating two-sided prediction intervals", 1969, one-sided). It holds if unknown
objects are of the same kind as those in the gallery. Fewer than SURE classes are too few for any promise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlex_feat.search.nearest import Nearest

WRONG = 0.05
CONFIDENCE = 0.95
SURE = 10  # classes
MAX_ASKED = 4000  # images, of all classes alike
_BLOCK = 256


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it promises.

    Attributes:
        threshold: of cosine similarity.
        wrong: largest share of unknown objects that get an answer all the same.
        confidence: of that; 0: nothing is promised.
        classes: that it was found on.
        images: that were asked.
    """

    threshold: float
    wrong: float
    confidence: float
    classes: int
    images: int

    def as_json(self) -> dict[str, Any]:
        """Plain data, for `meta` and results."""
        return {"value": self.threshold, "source": "gallery", "wrong": self.wrong, "confidence": self.confidence,
                "classes": self.classes, "images": self.images}  # fmt: skip


def calibrate(nearest: Nearest, labels: dict[int, str], seed: int = 0) -> Calibration | None:
    """Find the threshold; None for fewer than two classes.

    Args:
        nearest: the features.
        labels: label by id; images without a label are left out.
        seed: of the draw of the images that are asked.
    """
    ids = np.array([i for i in labels if i in nearest], np.int64)
    names, codes = np.unique([labels[i] for i in ids.tolist()], return_inverse=True)
    if len(names) < 2:
        return None
    asked = _asked(codes, seed)
    scores = _best_of_others(nearest, dict(zip(ids.tolist(), codes.tolist(), strict=True)), ids[asked])
    threshold = _lowest(scores, codes[asked])
    return Calibration(threshold, WRONG, CONFIDENCE if len(names) >= SURE else 0.0, len(names), len(asked))


def _asked(codes: np.ndarray, seed: int) -> np.ndarray:
    """Places of at most MAX_ASKED images, in a random order that takes one of every class before a second of any."""
    order = np.random.default_rng(seed).permutation(len(codes))
    drawn = codes[order]
    by_class = np.argsort(drawn, kind="stable")
    sizes = np.bincount(drawn)
    turn = np.empty(len(codes), np.int64)
    turn[by_class] = np.arange(len(codes)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[np.argsort(turn, kind="stable")][:MAX_ASKED]


def _best_of_others(nearest: Nearest, code: dict[int, int], asked: np.ndarray) -> np.ndarray:
    """The best similarity of each of these images to those of other classes, float32 [N]."""
    places = {i: place for place, i in enumerate(asked.tolist())}
    queries = np.empty((len(asked), nearest.dimension), np.float32)
    for ids, rows in nearest.rows():
        for row, i in enumerate(ids.tolist()):
            if i in places:
                queries[places[i]] = rows[row]
    own = np.array([code[i] for i in asked.tolist()])
    best = np.full(len(asked), -np.inf, np.float32)
    for ids, rows in nearest.rows():
        of_class = np.array([code.get(i, -1) for i in ids.tolist()])
        if (of_class < 0).all():
            continue
        for first in range(0, len(asked), _BLOCK):
            part = slice(first, first + _BLOCK)
            similar = queries[part] @ rows.T
            similar[(own[part, None] == of_class) | (of_class < 0)] = -np.inf
            best[part] = np.maximum(best[part], similar.max(axis=1))
    return best


def _lowest(scores: np.ndarray, codes: np.ndarray) -> float:
    """The lowest threshold whose bound is at most WRONG, among values just above a score."""
    sizes = np.bincount(codes)
    sizes, codes = sizes[sizes > 0], np.unique(codes, return_inverse=True)[1]
    order = np.argsort(-scores, kind="stable")
    classes = len(sizes)
    factor = _student(classes - 1) * math.sqrt(2 / classes)
    wrong = np.zeros(classes)
    lowest = float(scores[order[0]])
    for place in order.tolist():
        lowest = float(scores[place])  # with this image the answer is still right: the threshold is above it
        wrong[codes[place]] += 1 / sizes[codes[place]]
        if wrong.mean() + factor * wrong.std(ddof=1) > WRONG:
            break
    return float(np.nextafter(np.float32(lowest), np.float32(2)))


def _student(freedom: int) -> float:
    """The CONFIDENCE quantile of Student's distribution: Fisher and Cornish, 1960; exact to 1 % from 4 degrees on."""
    z = 1.6448536269514722
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    quantile: float = z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
    return quantile
