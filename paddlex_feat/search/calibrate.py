"""A similarity below which an answer is "unknown", found on the gallery itself.

Each image is asked as if its class were not in the gallery: its best similarity to images of the other classes is what
an unknown object would reach, and where this is at least the threshold, the answer is wrong. Images of a class resemble
each other, so the class is the unit. The angles of the similarities are smoothed by a normal kernel, for the threshold
lies in a tail that few images reach. With w the share of wrong answers of a class and C classes, it is the lowest with

    C / (C - 1) * mean(w) + t * std(w) * 2 / sqrt(C) <= WRONG

- C / (C - 1): an unknown object meets one class more than an image whose own is left out.
- t: the CONFIDENCE quantile of Student's distribution with C - 1 degrees of freedom. Of a prediction for as many new
  classes the factor is t * sqrt(2 / C) (Hahn, 1969, one-sided); two classes that resemble each other are wrong
  together, so C / 2 of them count as independent.
- The kernel is WIDTH times Silverman's (1986), by the number of classes.

On ORL with 20 of 40 people and 1 to 10 photographs each, and on 200 classes of drawings, the share of unknown images
that got an answer was at most WRONG in 95 % of random draws or more (tests/integration/test_unknown.py). It holds for
unknown objects of the same kind as those in the gallery. Fewer than SURE classes are too few for a promise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlex_feat.search.backend import Rows

WRONG = 0.05
CONFIDENCE = 0.95
SURE = 10  # classes
WIDTH = 1.5
EVALUATION = "evaluation"
MAX_ASKED = 4000  # images, of all classes alike
_BLOCK = 256
_erf = np.frompyfunc(math.erf, 1, 1)


@dataclass(frozen=True)
class Calibration:
    """A threshold and what it promises.

    Attributes:
        threshold: of cosine similarity.
        wrong: largest share of unknown objects that get an answer all the same; None: unknown.
        confidence: of that; 0: nothing is promised.
        classes: that it was found on.
        images: that were asked.
        source: "gallery"; "evaluation", for one that mode evaluate suggested for this model.
    """

    threshold: float
    wrong: float | None
    confidence: float
    classes: int = 0
    images: int = 0
    source: str = "gallery"

    @classmethod
    def from_json(cls, content: Any) -> Calibration | None:
        """The calibration that a file has; None if it has none."""
        try:
            values = [content[name] for name in ("value", "wrong", "confidence", "classes", "images")]
        except (TypeError, KeyError):
            return None
        if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in values):
            return None
        threshold, wrong, confidence, classes, images = values
        known = cls(float(threshold), float(wrong), float(confidence), int(classes), int(images))
        return known if -1 <= known.threshold <= 1 and 0 <= (known.wrong or 0) <= 1 else None

    def as_json(self) -> dict[str, Any]:
        """Plain data, for results."""
        return {"value": self.threshold, "source": self.source, "wrong": self.wrong, "confidence": self.confidence,
                "classes": self.classes, "images": self.images}  # fmt: skip

    @property
    def promise(self) -> str:
        """What it promises, as a clause."""
        if self.source == EVALUATION:
            return "the one that mode evaluate suggested for this model"
        text = f"of objects that are not in the gallery at most {self.wrong:.0%} get an answer"
        return text if self.confidence else f"{text}; the gallery has too few labels for a promise"


def calibrate(rows: Rows, labels: dict[int, str], seed: int = 0) -> Calibration | None:
    """Find the threshold; None for fewer than two classes.

    Args:
        rows: the features.
        labels: label by id; images without a label are left out.
        seed: of the draw of the images that are asked.
    """
    ids = np.concatenate([ids for ids, _ in rows]) if rows else np.empty(0, np.int64)
    ids = np.sort(ids[[i in labels for i in ids.tolist()]])
    names, codes = np.unique([labels[i] for i in ids.tolist()], return_inverse=True)
    if len(names) < 2:
        return None
    asked = _asked(codes, seed)
    scores = _best_of_others(rows, dict(zip(ids.tolist(), codes.tolist(), strict=True)), ids[asked])
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


def _best_of_others(parts: Rows, code: dict[int, int], asked: np.ndarray) -> np.ndarray:
    """The best similarity of each of these images to those of other classes, float32 [N]."""
    places = {i: place for place, i in enumerate(asked.tolist())}
    queries = np.empty((len(asked), parts[0][1].shape[1]), np.float32)
    for ids, rows in parts:
        for row, i in enumerate(ids.tolist()):
            if i in places:
                queries[places[i]] = rows[row]
    own = np.array([code[i] for i in asked.tolist()])
    best = np.full(len(asked), -np.inf, np.float32)
    for ids, rows in parts:
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
    """The lowest threshold whose bound is at most WRONG, to 1e-6 of an angle."""
    _, codes, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    angles, classes = np.arccos(np.clip(scores.astype(np.float64), -1, 1)), len(sizes)
    width = max(WIDTH * float(angles.std(ddof=1)) * (4 / (3 * classes)) ** 0.2, 1e-6)
    factor = 2 * _student(classes - 1) / math.sqrt(classes)
    least, most = 0.0, math.pi
    while most - least > 1e-6:
        angle = (least + most) / 2
        below = 0.5 + 0.5 * _erf((angle - angles) / (width * math.sqrt(2))).astype(np.float64)
        wrong = np.bincount(codes, below, classes) / sizes
        if classes / (classes - 1) * wrong.mean() + factor * wrong.std(ddof=1) > WRONG:
            most = angle
        else:
            least = angle
    return math.cos(least)


def _student(freedom: int) -> float:
    """The CONFIDENCE quantile of Student's distribution: Fisher and Cornish, 1960; exact to 1 % from 4 degrees on."""
    z = 1.6448536269514722
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    quantile: float = z + sum(term / freedom ** (power + 1) for power, term in enumerate(terms))
    return quantile
