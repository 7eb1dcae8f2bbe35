"""The classifier of a job on GPUs, by Paddle's own operators for it: class_center_sample and margin_cross_entropy.

No GPU was there to run it on: what is tested is this code, on a CPU, with the second operator replaced by its formula.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import paddle
import paddle.distributed
import paddle.nn.functional as F
from paddle.autograd import PyLayer

from paddlex_feat.models.class_scores import ClassScores
from paddlex_feat.models.heads import unit
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.classifier.part import Part
from paddlex_feat.training.classifier.row_rules import RowRule


class GpuRows:
    """Class vectors of one process on its GPU, with the optimizer's state of each.

    Args:
        vectors: float32 [classes, K, D].
        scores: what their logits are.
        rule: how the optimizer changes them.

    Attributes:
        tensors: "weight" and the optimizer's states by name, float32 [classes * K, D].
    """

    def __init__(self, vectors: np.ndarray, scores: ClassScores, rule: RowRule):
        weight = paddle.to_tensor(vectors.reshape(-1, vectors.shape[-1]))
        self.tensors = {"weight": weight, **{name: paddle.zeros_like(weight) for name in rule.states}}
        self.scores, self.rule = scores, rule

    @property
    def centers(self) -> int:
        """K, vectors of each class."""
        return self.scores.centers

    @property
    def dim(self) -> int:
        """Numbers of a vector."""
        return int(self.tensors["weight"].shape[1])

    @property
    def names(self) -> list[str]:
        """Of the arrays that a checkpoint holds."""
        return list(self.tensors)

    def chunk(self, name: str, start: int, stop: int) -> np.ndarray:
        """Some rows of an array, float32 [stop - start, D]."""
        rows: np.ndarray = self.tensors[name][start:stop].numpy()
        return rows

    def set_chunk(self, name: str, start: int, rows: np.ndarray) -> None:
        """Replace some rows of an array."""
        index = paddle.arange(start, start + len(rows))
        paddle.scatter_(self.tensors[name], index, paddle.to_tensor(rows))


class GpuClassifier:
    """As `sampled.SampledClassifier`, for a GPU, where `loss` takes no label smoothing.

    What is drawn follows from Paddle's generator, which a training seeds before each step. An angular margin that
    passes pi is not treated otherwise: the operator has no such case.

    Attributes:
        rows, part: as given.
        steps: updates so far.
    """

    def __init__(self, rows: GpuRows, part: Part, rate: float, seed: int, lr_mult: float = 1.0):
        self.rows, self.part = rows, part
        self._rate, self._seed, self._lr_mult = rate, seed, lr_mult
        self._group = None if part.group.size > 1 else False  # Paddle's words for all processes, and for none
        self._index = self._leaf = paddle.zeros([0])
        self._labels: list[paddle.Tensor] = []  # of each batch of the step, of all processes, as places among the drawn
        self.steps = 0

    def draw(self, labels: Sequence[np.ndarray]) -> None:
        """See SampledClassifier."""
        for batch in labels:
            self.part.require_classes(batch)
        batches = [self.part.group.all_gather_rows(batch.astype(np.int64)) for batch in labels]
        lengths = [sum(len(part) for part in batch) for batch in batches]
        everything = paddle.to_tensor(np.concatenate([part for batch in batches for part in batch]))
        wanted = max(1, self.part.drawn(self._rate))
        places, drawn = F.class_center_sample(everything, self.part.count, wanted, self._group)
        self._labels = paddle.split(places, lengths)
        centers = self.rows.centers
        self._index = (drawn.unsqueeze(1) * centers + paddle.arange(centers)).flatten()
        self._leaf = paddle.gather(self.rows.tensors["weight"], self._index)
        self._leaf.stop_gradient = False

    def loss(self, features: paddle.Tensor, labels: paddle.Tensor, smoothing: float) -> paddle.Tensor:
        """See SampledClassifier; the mean over the images of all processes. Batches come in the order of `draw`."""
        assert not smoothing, "modes.train_classifier has refused it"
        scores, own = self.rows.scores, self._labels.pop(0)
        of_all = _Gather.apply(features, self.part.group)
        vectors = self._leaf
        if scores.unit:
            of_all, vectors = unit(of_all, axis=1), unit(vectors, axis=1)
        products = paddle.matmul(of_all, vectors, transpose_y=True)
        if scores.centers > 1:
            products = products.reshape([len(products), -1, scores.centers]).max(axis=2)
        value: paddle.Tensor = F.margin_cross_entropy(
            products,
            own,
            margin1=1.0,
            margin2=scores.angle,
            margin3=scores.shift,
            scale=scores.scale,
            group=self._group,
            reduction="mean",
        )
        return value.reshape([])

    @paddle.no_grad()
    def update(self, rate: float) -> None:
        """See SampledClassifier."""
        self.steps += 1
        rule, tensors = self.rows.rule, self.rows.tensors
        rows, gradient = self._leaf.detach(), self._leaf.grad
        states = [paddle.gather(tensors[name], self._index) for name in rule.states]
        changed = rule.next(rows, gradient + rule.decay * rows, states, rate * self._lr_mult, self.steps)
        for name, values in zip(tensors, changed, strict=True):
            paddle.scatter_(tensors[name], self._index, values)

    def set_class_means(self, means: np.ndarray) -> None:
        """See SampledClassifier."""
        first, count = self.part.first, self.part.count
        noise = np.random.default_rng((self._seed, first, 8))
        self.rows.set_chunk("weight", 0, self.rows.scores.start(means[first : first + count], noise))


class _Gather(PyLayer):
    """Features of all processes, [N of all, D]; the gradient is that of DataParallel, which averages over processes."""

    @staticmethod
    def forward(ctx: Any, features: paddle.Tensor, group: ProcessGroup) -> paddle.Tensor:
        ctx.group, ctx.count = group, len(features)
        if group.size == 1:
            return features.clone()
        parts: list[paddle.Tensor] = []
        paddle.distributed.all_gather(parts, features)
        return paddle.concat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: paddle.Tensor) -> paddle.Tensor:
        if ctx.group.size == 1:
            return gradient
        gradient = gradient.clone()
        paddle.distributed.all_reduce(gradient)  # each process knows the part of its own classes
        start = ctx.group.rank * ctx.count
        return gradient[start : start + ctx.count] * ctx.group.size
