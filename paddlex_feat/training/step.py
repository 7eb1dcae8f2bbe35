"""One optimizer step: forward, losses, backward, update, on one device or on several together."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import paddle
import paddle.distributed
from paddle import nn

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.losses.combined import CombinedLoss
from paddlex_feat.losses.memory import FeatureMemory
from paddlex_feat.models.cpu_conv import has_channels_last, thread_for_channels_last
from paddlex_feat.models.recognizer import Recognizer
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.classifier.protocols import Classifier
from paddlex_feat.training.scaler import LossScaler
from paddlex_feat.training.transfer import Feed

Batch = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Precision:
    """Mixed precision: level OFF, O1 or O2 with "float16" or "bfloat16". Paddle has it on GPUs only."""

    level: str = "OFF"
    dtype: str = "float16"

    @property
    def on(self) -> bool:
        """Whether precision is mixed."""
        return self.level != "OFF"

    def autocast(self) -> Any:
        """The context of a forward pass."""
        if not self.on:
            return paddle.amp.auto_cast(False)
        # Paddle has a float16 kernel of depthwise convolutions, none of bfloat16; in O1 it uses neither by itself.
        half = {"depthwise_conv2d"} if self.dtype == "float16" else None
        return paddle.amp.auto_cast(True, custom_white_list=half, level=self.level, dtype=self.dtype)


class TrainingNetwork(nn.Layer):
    """What a device computes of a batch; the part that DataParallel and to_static wrap.

    forward: images uint8 [N, S, S, 3], labels int64 [N] -> features [N, D], logits [N, C] or None.

    Args:
        mixed: forward runs under auto_cast.
        classify: False: no logits, for a loss without classification. DataParallel would wait for gradients
            of an output that takes no part in the loss. The head has to be frozen then.
    """

    def __init__(self, model: Recognizer, preprocess: Preprocess, mixed: bool = False, classify: bool = True):
        super().__init__()
        self.model = model
        self.mixed = mixed
        self.classify = classify
        factor, offset = preprocess.affine()
        self.register_buffer("factor", paddle.to_tensor(factor.reshape(1, 3, 1, 1)), persistable=False)
        self.register_buffer("offset", paddle.to_tensor(offset.reshape(1, 3, 1, 1)), persistable=False)

    def forward(self, images: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor | None]:
        """Features [N, D] and logits [N, C], or None, of images uint8 [N, S, S, 3] and labels int64 [N]."""
        pixels = images.transpose([0, 3, 1, 2]).astype("float32")
        # Expanded, for Paddle 3.3 takes ten times as long on a CPU for what it broadcasts itself.
        pixels = pixels * self.factor.expand_as(pixels) + self.offset.expand_as(pixels)
        features = self.model(pixels)
        if not self.classify:
            return features, None
        if not self.mixed:
            return features, self.model.logits(features, labels)
        # The classifier in float32: an angular margin's 1 - cos^2 needs more digits than half precision has.
        with paddle.amp.auto_cast(enable=False):
            return features, self.model.logits(features.astype("float32"), labels)


class Step:
    """Callable: batches of one optimizer step -> mean loss terms, not yet fetched from the device.

    Args:
        network: of this rank; its parameters and those of `criterion` become those of rank 0.
        group: ranks whose gradients are averaged.
        cross_device_negatives: losses on features see the features of all ranks; their gradient is that of one
            device with the whole batch.
        compiled: capture the network as a static graph.
        unused_parameters: some parameters get no gradient, which DataParallel has to be told.
        memory: past batches of all ranks, with which losses on features compare this one, which is then added.
        classifier: class vectors that take no part in the network; losses on logits get the features then.

    Attributes:
        scaler: of float16's losses; off in other precisions.
        grad_norm: L2 norm of the whole gradient of the last measured step, float32 [] on the device: before clipping,
            and without the loss scale, and without that of a `classifier`; None if the last step was not measured.
    """

    def __init__(
        self,
        network: TrainingNetwork,
        criterion: CombinedLoss,
        optimizer: paddle.optimizer.Optimizer,
        precision: Precision | None = None,
        group: ProcessGroup | None = None,
        cross_device_negatives: bool = False,
        compiled: bool = False,
        unused_parameters: bool = False,
        memory: FeatureMemory | None = None,
        classifier: Classifier | None = None,
    ):
        self._precision = precision or Precision()
        self._group = group or ProcessGroup()
        self._criterion = criterion
        self._optimizer = optimizer
        self._cross_device = cross_device_negatives and self._group.size > 1
        self._memory = memory
        self._classifier = classifier
        if compiled:
            network = paddle.jit.to_static(network, full_graph=True)
        if self._group.size > 1:
            network = paddle.DataParallel(network, find_unused_parameters=unused_parameters)
            for parameter in criterion.parameters():
                paddle.distributed.broadcast(parameter, 0)
        self._network = network
        scaled = self._precision.on and self._precision.dtype == "float16"
        self.scaler = LossScaler(scaled)
        self._feed = Feed()
        self._thread = thread_for_channels_last() if has_channels_last(network) else None
        self.grad_norm: paddle.Tensor | None = None

    def __call__(self, batches: Sequence[Batch], measure: bool = False) -> dict[str, paddle.Tensor]:
        """Gradients of all batches, weighted by their images, make one update.

        Args:
            batches: (images uint8 [N, S, S, 3], labels int64 [N]), at least one.
            measure: compute `grad_norm`.
        """
        if self._thread is None:
            return self._update(batches, measure)
        return self._thread.submit(self._update, batches, measure).result()

    def _update(self, batches: Sequence[Batch], measure: bool) -> dict[str, paddle.Tensor]:
        total = sum(len(labels) for _, labels in batches)
        sums: dict[str, paddle.Tensor] = {}
        if self._classifier is not None:
            self._classifier.draw([labels for _, labels in batches])
        for number, (images, labels) in enumerate(batches, 1):
            weight = len(labels) / total
            with self._unsynchronised(number < len(batches)):
                terms = self._terms(self._feed(images), self._feed(labels))
                self.scaler.scale(terms["loss"] * weight).backward()
            for name, term in terms.items():
                part = term.detach() * weight
                sums[name] = sums[name] + part if name in sums else part
        self._average_loss_gradients()
        self.grad_norm = self._gradient_norm() if measure else None  # before the optimizer clips them
        self.scaler.step(self._optimizer)
        self.scaler.update()
        if self._classifier is not None:
            self._classifier.update(self._optimizer.get_lr())
        self._optimizer.clear_grad(set_to_zero=False)  # no zero fills: the next backward pass makes them
        self._feed.end_step()
        return sums

    @paddle.no_grad()
    def _average_loss_gradients(self) -> None:
        """Average the gradients of the losses' own parameters over all ranks, as DataParallel does the network's."""
        if self._group.size == 1:
            return
        for parameter in self._criterion.parameters():
            if parameter.grad is not None:
                paddle.distributed.all_reduce(parameter.grad)
                parameter.grad.scale_(1 / self._group.size)

    @paddle.no_grad()
    def _gradient_norm(self) -> paddle.Tensor | None:
        parameters = [*self._network.parameters(), *self._criterion.parameters()]
        gradients = [p.grad for p in parameters if p.grad is not None]
        # Not by paddle.linalg.norm, which adds up in one float32 number: an error of 1e-4 in a million elements.
        squares = [gradient.astype("float32").square().sum() for gradient in gradients]
        if not squares:
            return None
        norm, scale = paddle.stack(squares).sum().sqrt(), self.scaler.scale_tensor
        return norm if scale is None else norm / scale.reshape([])

    def _unsynchronised(self, more_to_come: bool) -> Any:
        """Gradients are exchanged once, with the last of the accumulated batches."""
        parallel = isinstance(self._network, paddle.DataParallel)
        return self._network.no_sync() if parallel and more_to_come else contextlib.nullcontext()

    def _terms(self, images: paddle.Tensor, labels: paddle.Tensor) -> dict[str, paddle.Tensor]:
        with self._precision.autocast():
            features, logits = self._network(images, labels)
        features = features.astype("float32")
        logits = None if logits is None else logits.astype("float32")
        if self._classifier is not None:
            logits = features
        gathered = self._of_all_ranks(features, labels) if self._cross_device else ()
        if self._memory is None:
            terms: dict[str, paddle.Tensor] = self._criterion(features, logits, labels, *gathered)
            return terms
        terms = self._criterion(features, logits, labels, *gathered, references=self._memory.references)
        # Of all ranks in any case, so that a checkpoint, which rank 0 writes, holds what every rank needs.
        self._memory.add(*(gathered or self._of_all_ranks(features, labels)))
        return terms

    def _of_all_ranks(self, features: paddle.Tensor, labels: paddle.Tensor) -> tuple[paddle.Tensor, paddle.Tensor]:
        """Features and labels of all ranks in rank order; only this rank's carry a gradient.

        DataParallel averages gradients over ranks, but each rank's features occur in one rank's
        gradient only, so theirs is multiplied by the number of ranks.
        """
        if self._group.size == 1:
            return features, labels
        parts: list[paddle.Tensor] = []
        paddle.distributed.all_gather(parts, features.detach())
        own = paddle.assign(features)
        own.register_hook(lambda gradient: gradient * self._group.size)
        parts[self._group.rank] = own
        all_labels: list[paddle.Tensor] = []
        paddle.distributed.all_gather(all_labels, labels)
        return paddle.concat(parts), paddle.concat(all_labels)
