"""The classifier of a job: what each step draws, the softmax over the classes of all processes, its gradient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
from paddle import nn
from paddle.autograd import PyLayer

from paddlex_feat.training.classifier.class_rows import ClassRows, Scored, Smoothing
from paddlex_feat.training.classifier.part import Part
from paddlex_feat.training.classifier.protocols import Classifier


class SampledClassifier:
    """Class vectors that take no part in Paddle's graph: a step computes and changes those it draws.

    All classes of the step's images are drawn, by all processes together, and others at random until there are `rate`
    of all; all are drawn at rate 1, and the loss, its gradient and the update are then those of a head in the network.
    The gradient is that of the mean over the images of all processes, as DataParallel averages the network's.

    Args:
        rows: the class vectors of this process.
        part: which classes these are.
        rate: share of the classes that a step draws, 0 < rate <= 1.
        seed: of what is drawn.
        lr_mult: factor on the learning rate.

    Attributes:
        rows, part: as given.
        steps: updates so far, on which the next draw depends.
    """

    def __init__(self, rows: ClassRows, part: Part, rate: float, seed: int, lr_mult: float = 1.0):
        self.rows, self.part = rows, part
        self._rate, self._seed, self._lr_mult = rate, seed, lr_mult
        self._drawn, self._drawn_by_all = np.empty(0, np.int64), 0
        self.steps = 0

    def draw(self, labels: Sequence[np.ndarray]) -> None:
        """Draw the classes of a step, of which `labels`, int64 [N], are this process's batches.

        Raises TrainingError for what is not a class.
        """
        own = np.concatenate(labels).astype(np.int64)
        self.part.require_classes(own)
        of_all = np.concatenate(self.part.group.all_gather_rows(own))
        first, count = self.part.first, self.part.count
        needed = np.unique(of_all[(of_all >= first) & (of_all < first + count)]) - first
        self._drawn = self._choose(needed, count)
        self._drawn_by_all = int(self.part.group.all_reduce(np.array([len(self._drawn)], np.int64))[0])
        self.rows.draw(self._drawn)

    def _choose(self, needed: np.ndarray, count: int) -> np.ndarray:
        number = max(len(needed), self.part.drawn(self._rate))
        if number >= count:
            return np.arange(count)
        keys = np.random.default_rng((self._seed, self.steps, 6, self.part.group.rank)).random(count, np.float32)
        keys[needed] = -1
        return np.sort(np.argpartition(keys, number)[:number])

    def loss(self, features: paddle.Tensor, labels: paddle.Tensor, smoothing: float) -> paddle.Tensor:
        """Mean cross-entropy of this process's images, float32 []: of features float32 [N, D], labels int64 [N].

        Label smoothing spreads its probability over the classes drawn.
        """
        value: paddle.Tensor = _CrossEntropy.apply(features, self, labels.numpy(), smoothing)
        return value

    def set_class_means(self, means: np.ndarray) -> None:
        """Start at the mean features of all classes, float32 [C, D] with rows of length 1."""
        first, count = self.part.first, self.part.count
        self.rows.start_at(means[first : first + count], np.random.default_rng((self._seed, first, 8)))

    def update(self, rate: float) -> None:
        """Change the class vectors drawn by the gradients of the step, at this learning rate."""
        self.steps += 1
        self.rows.update(rate * self._lr_mult, self.steps)

    def forward(self, features: np.ndarray, labels: np.ndarray, smoothing: float) -> tuple[float, _Pass]:
        """The loss, and what `backward` needs: features float32 [N, D], labels int64 [N]."""
        group = self.part.group
        of_all = group.all_gather_rows(features)
        wanted = np.concatenate(group.all_gather_rows(labels)) - self.part.first
        batch = self.rows.score(np.concatenate(of_all), _places(self._drawn, wanted))
        largest = group.all_reduce(self.rows.largest(batch), "max")
        totals, own, everything = group.all_reduce(self.rows.sums(batch, largest))
        losses = np.log(totals) - (1 - smoothing) * own - smoothing * everything / self._drawn_by_all
        start = sum(len(part) for part in of_all[: group.rank])
        here = slice(start, start + len(features))
        return float(losses[here].mean()), _Pass(
            batch, totals, Smoothing(smoothing / self._drawn_by_all, 1 - smoothing), features, here
        )

    def backward(self, done: _Pass, upstream: float) -> np.ndarray:
        """The gradient of the features of `forward`, float32 [N, D], where that of the loss is `upstream`."""
        group, count = self.part.group, len(done.features)
        factors = np.concatenate(group.all_gather_rows(np.full(count, upstream / count, np.float32)))
        moved = self.rows.backward(done.batch, factors, done.totals, done.smoothing)
        done.batch.average_over(group.size)
        return self.rows.through_length(done.features, group.all_reduce(moved)[done.here])


@dataclass
class _Pass:
    """A batch between `forward` and `backward`; `here` are this process's images among those of all."""

    batch: Scored
    totals: np.ndarray
    smoothing: Smoothing
    features: np.ndarray
    here: slice


class _CrossEntropy(PyLayer):
    """The loss of a SampledCrossEntropy in Paddle's graph."""

    @staticmethod
    def forward(
        ctx: Any, features: paddle.Tensor, classifier: SampledClassifier, labels: np.ndarray, smoothing: float
    ) -> paddle.Tensor:
        value, ctx.done = classifier.forward(features.numpy(), labels, smoothing)
        ctx.classifier = classifier
        return paddle.to_tensor(value, "float32")

    @staticmethod
    def backward(ctx: Any, upstream: paddle.Tensor) -> paddle.Tensor:
        return paddle.to_tensor(ctx.classifier.backward(ctx.done, float(upstream)))


class SampledCrossEntropy(nn.Layer):
    """The loss cross_entropy of a SampledClassifier, in the place of one of logits.

    forward: features float32 [N, D], labels int64 [N] -> float32 [].
    """

    def __init__(self, classifier: Classifier, smoothing: float):
        super().__init__()
        self._classifier, self._smoothing = classifier, smoothing

    def forward(self, features: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """See the class."""
        value: paddle.Tensor = self._classifier.loss(features, labels, self._smoothing)
        return value


def _places(drawn: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Where values are in an ascending array, -1 where they are not: int64 [N]."""
    if not len(drawn):
        return np.full(len(wanted), -1)
    found = np.minimum(np.searchsorted(drawn, wanted), len(drawn) - 1)
    return np.where(drawn[found] == wanted, found, -1)
