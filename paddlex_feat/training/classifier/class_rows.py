"""The class vectors of one process and their arithmetic on a CPU: scores, gradients and updates of those drawn.

With unit vectors u_x of features x and u_w of class vectors w, scores s = u_x . u_w, and G the gradient of the loss by
s: the gradient of u_x is sum_w G u_w, that of w is (sum_x G u_x - u_w sum_x G s) / |w|. `Scored.gradient` is G / |w|,
and `Scored.pull` is (sum_x G s) / |w|^2, so that the gradient of w is sum_x gradient u_x - pull w.

All of it runs in blocks that stay in a processor's cache, on several threads; sums are taken in the order of the
blocks, so that the number of threads changes no bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

from paddlex_feat.models.class_scores import ClassScores
from paddlex_feat.training.classifier.row_rules import RowRule

T = TypeVar("T")
_BLOCK = 384  # vectors: with momentum and gradient a little more than a second-level cache; measured
_LEAST_SQUARE = np.float32(1e-12)  # a vector shorter than 1e-6 has no direction, as in models.heads


@dataclass(frozen=True)
class Smoothing:
    """Label smoothing: the probability `spread` of every class, and what the own class has beside, `kept`."""

    spread: float
    kept: float


@dataclass
class Scored:
    """A batch on its way through softmax and gradient; [classes, N] of the classes drawn.

    Attributes:
        features: float32 [N, D], of length 1 where scores are cosines.
        own: where the own class of each image is among those drawn, -1 where it is in another process, int64 [N].
        products: of vectors and features, float32 [classes * K, N].
        scores: float32 [classes, N], with the margin of the own class.
        slopes: derivative of the score of the own class, float32 [N].
        cosines: of the own class before the margin, float32 [N].
        nearest: which of the K vectors of a class counts, int64 [classes, N]; None for one each.
        gradient: of the products, divided by the vectors' lengths, float32 [classes * K, N].
        pull: what the gradient takes of each vector itself, float32 [classes * K].
    """

    features: np.ndarray
    own: np.ndarray
    products: np.ndarray
    scores: np.ndarray
    slopes: np.ndarray
    cosines: np.ndarray
    nearest: np.ndarray | None
    gradient: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    pull: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))

    def average_over(self, processes: int) -> None:
        """Divide the gradient of the vectors, once that of the features has been taken."""
        if processes > 1:
            self.features, self.pull = self.features / np.float32(processes), self.pull / np.float32(processes)


class ClassRows:
    """Class vectors of one process, with the optimizer's state of each.

    Args:
        vectors: float32 [classes, K, D]; they become this object's.
        scores: what their logits are.
        rule: how the optimizer changes them.
        threads: that compute.

    Attributes:
        weights: float32 [classes * K, D].
        states: by name, of the same shape.
    """

    def __init__(self, vectors: np.ndarray, scores: ClassScores, rule: RowRule, threads: int):
        self.weights = vectors.reshape(-1, vectors.shape[-1])
        self.states = {name: np.zeros_like(self.weights) for name in rule.states}
        self._scores, self._rule, self._threads = scores, rule, threads
        self._drawn = self.weights  # those of this step
        self._matrices: list[np.ndarray] = []  # memory of earlier steps for those of this one
        self._in_use = 0  # how many of them
        self._index: np.ndarray | None = None  # where these are among all; None: they are all
        self._inverse = np.empty(0, np.float32)  # 1 / length of each
        self._batches: list[Scored] = []  # of this step, with gradients

    @property
    def centers(self) -> int:
        """K, vectors of each class."""
        return self._scores.centers

    @property
    def classes(self) -> int:
        """How many classes there are."""
        return len(self.weights) // self.centers

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return int(self.weights.shape[1])

    @property
    def names(self) -> list[str]:
        """Of the arrays that a checkpoint holds."""
        return ["weight", *self.states]

    def chunk(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of an array, float32 [stop - start, D]: a view."""
        return (self.weights if name == "weight" else self.states[name])[start:stop]

    def set_chunk(self, name: str, start: int, rows: np.ndarray) -> None:
        """Replace some rows of an array."""
        self.chunk(name, start, start + len(rows))[:] = rows

    def start_at(self, means: np.ndarray, noise: np.random.Generator) -> None:
        """Start at the classes' mean features, float32 [classes, D] of length 1."""
        self.weights[:] = self._scores.start(means, noise)

    def draw(self, classes: np.ndarray) -> None:
        """Take these classes, int64 [S], ascending, for a step; what an unfinished step has left is dropped."""
        self._batches, self._in_use = [], 0
        centers = self._scores.centers
        if len(classes) == self.classes:
            self._index, self._drawn = None, self.weights
        else:
            self._index = (classes[:, None] * centers + np.arange(centers)).ravel()
            self._drawn = self._matrix(len(self._index), self.dim)
        self._inverse = np.ones(len(self._drawn), np.float32)
        deque(self._in_blocks(self._take), 0)

    def _matrix(self, rows: int, columns: int) -> np.ndarray:
        """Memory for a matrix of this step, float32 [rows, columns]; new memory would be mapped page by page."""
        if self._in_use == len(self._matrices):
            self._matrices.append(np.empty(0, np.float32))
        if self._matrices[self._in_use].size < rows * columns:
            self._matrices[self._in_use] = np.empty(rows * columns, np.float32)
        self._in_use += 1
        return self._matrices[self._in_use - 1][: rows * columns].reshape(rows, columns)

    def _take(self, block: slice) -> None:
        if self._index is not None:
            self.weights.take(self._index[block], axis=0, out=self._drawn[block], mode="clip")  # "raise" would buffer
        if self._scores.unit:
            self._inverse[block] = _inverse_lengths(self._drawn[block])

    def score(self, features: np.ndarray, own: np.ndarray) -> Scored:
        """Scores of a batch with the classes drawn; `features` float32 [N, D], `own` as in Scored."""
        centers, count = self._scores.centers, len(features)
        if self._scores.unit:
            features = features * _inverse_lengths(features)[:, None]
        products = self._matrix(len(self._drawn), count)
        scores = products if centers == 1 else self._matrix(len(products) // centers, count)
        nearest = None if centers == 1 else np.empty(scores.shape, np.int64)
        columns = np.ascontiguousarray(features.T)

        def block_of(block: slice) -> None:
            part = np.matmul(self._drawn[block], columns, out=products[block])
            if self._scores.unit:
                part *= self._inverse[block, None]
            if nearest is not None:
                of_classes, place = part.reshape(-1, centers, count), _classes_of(block, centers)
                nearest[place], scores[place] = of_classes.argmax(axis=1), of_classes.max(axis=1)

        deque(self._in_blocks(block_of), 0)
        at = self._own_entries(own)
        cosines, slopes = np.zeros(count, np.float32), np.ones(count, np.float32)
        cosines[at[1]] = scores[at]
        scores[at], slopes[at[1]] = self._scores.own(scores[at])
        return Scored(features, own, products, scores, slopes, cosines, nearest)

    def largest(self, batch: Scored) -> np.ndarray:
        """The largest logit of each image among the classes drawn, float32 [N]."""
        if not len(batch.scores):
            return np.full(len(batch.own), -np.inf, np.float32)
        largest: np.ndarray = batch.scores.max(axis=0) * np.float32(self._scores.scale)
        return largest

    def sums(self, batch: Scored, largest: np.ndarray) -> np.ndarray:
        """Sums over the classes drawn: float64 [3, N].

        They are of exp(logit - largest), of the own class's logit - largest, and of all logits - largest. The
        exponentials are kept as the batch's gradient.
        """
        scale = np.float32(self._scores.scale)
        batch.gradient = self._matrix(*batch.scores.shape)

        def block_of(block: slice) -> np.ndarray:
            place = _classes_of(block, self._scores.centers)
            part = np.multiply(batch.scores[place], scale, out=batch.gradient[place])
            part -= largest
            ones = np.ones(len(part), np.float32)  # products with it are faster than sums down the columns
            total = ones @ part
            np.exp(part, out=part)
            return np.stack([ones @ part, total])

        of_all = np.zeros((2, len(batch.own)))
        for part in self._in_blocks(block_of):
            of_all += part
        own, at = np.zeros(len(batch.own)), self._own_entries(batch.own)
        own[at[1]] = batch.scores[at] * scale - largest[at[1]]
        return np.stack([of_all[0], own, of_all[1]])

    def backward(self, batch: Scored, factors: np.ndarray, totals: np.ndarray, smoothing: Smoothing) -> np.ndarray:
        """The gradient of `batch.features` from the classes drawn, float32 [N, D]; the vectors' waits for `update`.

        With p a class's share of the softmax, the gradient of its logit is factor * (p - spread), and that of the own
        class factor * (p - spread - kept).

        Args:
            batch: after `sums`.
            factors: of each image's loss in what is derived, float32 [N].
            totals: the sum of exponentials over all classes, float64 [N].
            smoothing: of the labels.
        """
        centers, scale = self._scores.centers, np.float32(self._scores.scale)
        factors = factors * scale
        shares, spread = (factors / totals).astype(np.float32), factors * np.float32(smoothing.spread)
        of_rows = batch.gradient if batch.nearest is None else self._matrix(*batch.products.shape)
        pull = np.zeros(len(of_rows), np.float32)

        def block_of(block: slice) -> np.ndarray:
            place = _classes_of(block, centers)
            part = batch.gradient[place]
            part *= shares
            part -= spread
            if batch.nearest is not None:
                part = _at_nearest(part, batch.nearest[place], of_rows[block])
            if self._scores.unit:
                np.einsum("ij,ij->i", part, batch.products[block], out=pull[block])
                part *= self._inverse[block, None]
            moved: np.ndarray = part.T @ self._drawn[block]
            return moved

        moved = np.zeros_like(batch.features)
        for part in self._in_blocks(block_of):
            moved += part
        batch.gradient, batch.pull = of_rows, pull
        self._correct_own(batch, moved, spread, factors * np.float32(smoothing.kept))
        batch.pull *= self._inverse**2
        self._batches.append(batch)
        return moved

    def _correct_own(self, batch: Scored, moved: np.ndarray, spread: np.ndarray, kept: np.ndarray) -> None:
        """Give the entries of the own classes, which `backward` has taken for others, what is theirs."""
        classes, images = self._own_entries(batch.own)
        rows = classes
        if batch.nearest is not None:
            rows = classes * self._scores.centers + batch.nearest[classes, images]
        inverse = self._inverse[rows]
        taken = np.divide(batch.gradient[rows, images], inverse, out=np.zeros_like(inverse), where=inverse > 0)
        right = (taken - kept[images]) * batch.slopes[images]
        if self._scores.unit:
            lost = right * batch.cosines[images] - taken * batch.products[rows, images]
            np.add.at(batch.pull, rows, lost)
        batch.gradient[rows, images] = right * inverse
        moved[images] += ((right - taken) * inverse)[:, None] * self._drawn[rows]

    def update(self, rate: float, number: int) -> None:
        """Change the vectors drawn by the gradients of the step's batches; `number` is the step's, from 1."""
        if not self._batches:
            return

        def block_of(block: slice) -> None:
            rows, place = self._drawn[block], block if self._index is None else self._index[block]
            of_itself = np.full(len(rows), self._rule.decay, np.float32)
            gradient, another = np.empty_like(rows), np.empty_like(rows)
            for number_of_batch, batch in enumerate(self._batches):
                np.matmul(batch.gradient[block], batch.features, out=another if number_of_batch else gradient)
                of_itself -= batch.pull[block]
                if number_of_batch:
                    gradient += another
            np.multiply(rows, of_itself[:, None], out=another)
            gradient += another
            states = [self._rows_of(state, place) for state in self.states.values()]
            self._rule.step(rows, gradient, states, rate, number)
            if self._index is not None:
                self.weights[place] = rows
                for state, changed in zip(self.states.values(), states, strict=True):
                    state[place] = changed

        deque(self._in_blocks(block_of), 0)
        self._batches = []

    def through_length(self, features: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """The gradient of features [N, D] of any length, of that of features as `score` has used them."""
        if not self._scores.unit:
            return moved
        inverse = _inverse_lengths(features)[:, None]
        unit = features * inverse
        along = np.einsum("ij,ij->i", unit, moved)[:, None]
        gradient: np.ndarray = (moved - unit * along) * inverse
        return gradient

    @staticmethod
    def _rows_of(array: np.ndarray, place: slice | np.ndarray) -> np.ndarray:
        """Some rows: a view of a slice, a copy of those that an index names."""
        rows: np.ndarray = array[place] if isinstance(place, slice) else array.take(place, axis=0, mode="clip")
        return rows

    def _own_entries(self, own: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        (images,) = np.nonzero(own >= 0)
        return own[images], images

    @cached_property
    def _blas(self) -> ThreadpoolController:
        return ThreadpoolController()

    def _in_blocks(self, work: Callable[[slice], T]) -> Iterator[T]:
        """Call `work` with each block of the rows drawn, on all threads; its results in order."""
        step = max(1, _BLOCK // self._scores.centers) * self._scores.centers
        blocks = [slice(at, min(at + step, len(self._drawn))) for at in range(0, len(self._drawn), step)]
        with self._blas.limit(limits=1, user_api="blas"), ThreadPoolExecutor(self._threads, "classifier") as pool:
            yield from pool.map(work, blocks)


def _inverse_lengths(rows: np.ndarray) -> np.ndarray:
    """1 / length of each row of float32 [R, D]; 0 for one that is too short to have a direction."""
    squares = np.einsum("ij,ij->i", rows, rows)
    inverse: np.ndarray = np.zeros_like(squares)
    np.divide(1, np.sqrt(squares), out=inverse, where=squares > _LEAST_SQUARE)
    return inverse


def _classes_of(block: slice, centers: int) -> slice:
    """The classes of a block of rows, of which each class has `centers`."""
    return slice(block.start // centers, block.stop // centers)


def _at_nearest(part: np.ndarray, nearest: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Gradients of classes, [B, N], at the vector of each that counts, [B, N]; 0 for the others: [B * K, N]."""
    of_classes = out.reshape(len(part), -1, part.shape[1])
    of_classes[:] = 0
    np.put_along_axis(of_classes, nearest[:, None], part[:, None], axis=1)
    return out
