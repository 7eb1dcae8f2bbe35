"""The class that an image is nearest to beside its own, and how much nearer than others of its class are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddlex_feat.evaluation.ranking.neighbours import Neighbours

# Share of what is usual in the class that is taken off: most images of a class that resembles another are near that
# too, and their labels are right. Of faces, drawings, icons and clothes with 5 % of the labels exchanged, 0.25 finds
# most on the whole: 0.89 instead of 0.83 of the drawings, 0.42 instead of 0.36 of the icons.
TYPICAL = 0.25
NEAREST = 10  # images of a class that are asked at most
_CANDIDATES = 5  # classes of which an image's nearest one is chosen
_SMALL = 64  # images of a class that are gathered with those of other classes; larger ones are multiplied each alone
_BYTES = 2**25  # of features that are gathered at once
_ROWS = 4096


@dataclass(frozen=True)
class NearestClass:
    """Of each image.

    Attributes:
        similarity: mean similarity to the nearest images of the other class, float64 [N]; nan where there is none.
        label: of that class, int64 [N]; without meaning where there is none.
        score: how much nearer that class is than the own one, by more than TYPICAL of what is usual for images of this
            label, float64 [N]; nan where it is unknown.
    """

    similarity: np.ndarray
    label: np.ndarray
    score: np.ndarray


def asked_of(sizes: np.ndarray) -> np.ndarray:
    """How many images of classes of these sizes are asked: half of them, for few of them are wrong."""
    asked: np.ndarray = np.clip((sizes + 1) // 2, 1, NEAREST)
    return asked


class ClassSimilarity:
    """Similarities of images to classes.

    Args:
        rows: unit features, float32 [N, D].
        classes: labels, int64 [N].
    """

    def __init__(self, rows: np.ndarray, classes: np.ndarray):
        self._rows = rows
        self._labels, self._codes, self._sizes = np.unique(classes, return_inverse=True, return_counts=True)
        self._asked = asked_of(self._sizes)
        self._members = np.argsort(self._codes, kind="stable")
        self._starts = np.cumsum(self._sizes) - self._sizes
        sums = np.add.reduceat(rows[self._members], self._starts, axis=0, dtype=np.float64)
        self._means = sums / self._sizes[:, None]
        square = np.einsum("cd,cd->c", self._means, self._means)
        # Mean similarity of two images of a class, without those to itself.
        self._own = (self._sizes * square - 1) / np.maximum(self._sizes - 1, 1)

    def nearest(self, near: Neighbours, own: np.ndarray) -> NearestClass:
        """The nearest other class.

        Args:
            near: nearest images.
            own: mean similarity to the nearest images of the own class, float64 [N].
        """
        parts = [self._nearest(slice(i, i + _ROWS), near, own) for i in range(0, len(own), _ROWS)]
        return NearestClass(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))

    def _nearest(self, part: slice, near: Neighbours, own: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        classes, bound, exact = self._bounds(part, near)
        images = np.arange(len(own))[part]
        means = np.where(np.isfinite(bound), bound, -np.inf)
        for column in range(classes.shape[1]):
            unsure = ~exact[:, column] & np.isfinite(bound[:, column])
            small = unsure & (self._sizes[classes[:, column]] <= _SMALL)
            means[small, column] = self._means_to(images[small], classes[small, column])
            for code in np.unique(classes[unsure & ~small, column]).tolist():
                asking = unsure & (classes[:, column] == code)
                means[asking, column] = self._means_to_one(images[asking], code)
        codes = self._codes[part, None]
        usual = np.einsum("nd,nkd->nk", self._means[codes[:, 0]], self._means[classes]) - self._own[codes]
        scores = means - own[part, None] - TYPICAL * usual
        best = scores.argmax(axis=1)[:, None]
        similarity, score = (np.take_along_axis(array, best, axis=1)[:, 0] for array in (means, scores))
        there = np.isfinite(similarity)
        label = self._labels[np.take_along_axis(classes, best, axis=1)[:, 0]]
        return np.where(there, similarity, np.nan), label, np.where(there, score, np.nan)

    def _bounds(self, part: slice, near: Neighbours) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The likeliest classes, an upper bound of the mean similarity to each, and whether it is exact: [n, K] each.

        A class of which not enough images are among the neighbours that are known gets the last one's similarity for
        the others, which is more than they have. The bound is -inf where there are fewer classes.
        """
        indices, similarity = near.other[part], near.other_similarity[part].astype(np.float64)
        there = indices >= 0
        classes = np.where(there, self._codes[indices], -1 - np.arange(indices.shape[1]))
        same = classes[:, :, None] == classes[:, None, :]
        place = np.tril(same).sum(axis=2)  # of each neighbour among those of its class, from 1
        wanted = self._asked[np.maximum(classes, 0)]
        counted = there & (place <= wanted)
        values = np.where(counted, similarity, 0.0)
        sums, counts = (np.einsum("nij,nj->ni", same, array) for array in (values, counted.astype(np.float64)))
        last = np.where(there, similarity, np.inf).min(axis=1, keepdims=True)
        bounds = np.where(there & (place == 1), (sums + (wanted - counts) * last) / wanted, -np.inf)
        best = np.argsort(-bounds, axis=1, kind="stable")[:, :_CANDIDATES]
        chosen = (np.take_along_axis(array, best, axis=1) for array in (classes, bounds, counts >= wanted))
        classes, bounds, exact = chosen
        return np.where(np.isfinite(bounds), classes, 0), bounds, exact

    def _means_to_one(self, images: np.ndarray, code: int) -> np.ndarray:
        """As `_means_to`, of images to one class."""
        members = self._members[self._starts[code] : self._starts[code] + self._sizes[code]]
        wanted = int(self._asked[code])
        best = np.full((len(images), 0), -np.inf, np.float32)
        step = max(wanted, _BYTES // (4 * max(len(images), self._rows.shape[1])))
        for first in range(0, len(members), step):
            similar = self._rows[images] @ self._rows[members[first : first + step]].T
            best = np.concatenate([best, similar], axis=1)
            if best.shape[1] > wanted:
                best = -np.partition(-best, wanted - 1, axis=1)[:, :wanted]
        mean: np.ndarray = best.astype(np.float64).mean(axis=1)
        return mean

    def _means_to(self, images: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """Mean similarity of each image to the nearest of a class that is not its own, float64 [n]."""
        means = np.empty(len(images))
        longest = int(self._sizes[classes].max(initial=1))
        step = max(1, _BYTES // (4 * self._rows.shape[1] * longest))
        for first in range(0, len(images), step):
            some, of = images[first : first + step], classes[first : first + step]
            offsets, sizes = np.arange(longest), self._sizes[of, None]
            members = self._members[np.minimum(self._starts[of, None] + offsets, len(self._members) - 1)]
            similar = np.einsum("nd,nmd->nm", self._rows[some], self._rows[members])
            similar = -np.sort(-np.where(offsets < sizes, similar, -np.inf), axis=1)
            wanted = self._asked[of, None]
            means[first : first + step] = np.where(offsets < wanted, similar, 0.0).sum(axis=1) / wanted[:, 0]
        return means
