"""The linear probe: train what follows the backbone on features that were computed once.

Kumar et al., "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution", arXiv:2202.10054:
where the head starts from the probe, training of all layers changes the backbone less and generalises better.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import nn

from paddlex_feat.errors import ConfigError, TrainingError
from paddlex_feat.losses.combined import CombinedLoss
from paddlex_feat.models.heads import LinearNeck
from paddlex_feat.models.recognizer import Recognizer
from paddlex_feat.training.cached_features import CachedFeatures
from paddlex_feat.training.schedule import warmup_cosine

log = logging.getLogger(__name__)
Optimize = Callable[[Sequence[paddle.Tensor]], paddle.optimizer.Optimizer]


@dataclass(frozen=True)
class ProbePlan:
    """Length and schedule of a probe.

    Attributes:
        epochs: passes over the features; the first tenth is a linear warm-up.
        learning_rate: peak; parameters have the factors that they have in the training of all layers.
        seed: of what is drawn: the image or its mirror image.
    """

    epochs: int
    learning_rate: float
    seed: int


class Probe:
    """Trains the head, a linear neck and the losses' own parameters; the backbone stays as it is.

    A BatchNorm neck stays too: it is part of the features that are trained on.

    Args:
        network: in the place of whose neck and head, for each step, cached features go through them.
        criterion: the losses of the run.

    Raises:
        ConfigError: nothing of these would be trained, or the neck has half precision.
    """

    def __init__(self, network: Recognizer, criterion: CombinedLoss):
        self._network, self._criterion = network, criterion
        self._trains_neck = isinstance(network.neck, LinearNeck)
        layers: list[nn.Layer | None] = [network.head, criterion, network.neck if self._trains_neck else None]
        self.parameters = [p for layer in layers if layer for p in layer.parameters() if not p.stop_gradient]
        if not self.parameters:
            raise ConfigError(
                "The linear probe has nothing to train: the losses need no logits, and the neck is not linear.",
                where="Train.method",
                fix="Use Train.method=full, Model.neck=linear, or a loss that needs logits.",
                code="probe-nothing",
            )
        if any(parameter.dtype != paddle.float32 for parameter in self.parameters):
            raise ConfigError(
                "The linear probe trains the neck in float32, and Train.amp=O2 keeps it in half precision.",
                where="Train.method",
                fix="Use -o Train.amp=O1.",
                code="probe-half-precision",
            )

    def train(
        self,
        cached: CachedFeatures,
        epochs: Callable[[int], Iterable[np.ndarray]],
        optimize: Optimize,
        plan: ProbePlan,
        look: Callable[[], None],
    ) -> None:
        """Train on cached outputs of the backbone, on one device.

        Args:
            cached: of the backbone.
            epochs: epoch -> batches of image indices, int64 [N].
            optimize: makes the optimizer of a list of parameters.
            plan: length and schedule.
            look: called before each epoch; its exceptions end the probe.

        Raises:
            TrainingError: a loss is not finite.
        """
        began, samples, steps = time.perf_counter(), 0, 0
        source = cached if self._trains_neck else cached.through(self._network.neck)
        optimizer = optimize(self.parameters)
        losses = []
        paddle.seed(plan.seed)
        for epoch in range(plan.epochs):
            look()
            batches = list(epochs(epoch))
            draw = np.random.default_rng((plan.seed, epoch, 4))
            total = paddle.zeros([])
            for number, indices in enumerate(batches):
                done = epoch * len(batches) + number
                optimizer.set_lr(self._rate(plan, done, len(batches)))
                views = draw.integers(len(source.features), size=len(indices))
                total += self._step(optimizer, source.features[views, indices], source.labels[indices])
                samples, steps = samples + len(indices), steps + 1
            losses.append(float(total) / len(batches))
            if not math.isfinite(losses[-1]):
                raise TrainingError(
                    f"The loss of the linear probe is not finite in its epoch {epoch + 1}.",
                    where=f"Train.probe_learning_rate {plan.learning_rate:g}",
                    fix="Lower Train.probe_learning_rate.",
                    code="probe-not-finite",
                )
        seconds = time.perf_counter() - began
        text = "Linear probe: %d epochs, %d steps, loss %.4f -> %.4f, %.0f features/s"
        log.info(text, plan.epochs, steps, losses[0], losses[-1], samples / seconds)

    def _rate(self, plan: ProbePlan, step: int, steps_per_epoch: int) -> float:
        return warmup_cosine(plan.learning_rate, step + 1, steps_per_epoch, plan.epochs, plan.epochs / 10)

    def _step(self, optimizer: paddle.optimizer.Optimizer, rows: np.ndarray, labels: np.ndarray) -> paddle.Tensor:
        features, classes = paddle.to_tensor(rows), paddle.to_tensor(labels)
        if self._trains_neck:
            features = self._network.neck(features)
        logits = self._network.logits(features, classes) if self._criterion.needs_logits else None
        loss: paddle.Tensor = self._criterion(features, logits, classes)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.clear_grad()
        return loss.detach()
