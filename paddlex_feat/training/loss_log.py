"""Losses of the steps: collected on the device, fetched one log interval late, checked, logged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import paddle

from paddlex_feat.errors import TrainingError
from paddlex_feat.training.run_logger import RunLogger
from paddlex_feat.training.transfer import Fetch

MIN_SCALE = 2.0**-14  # below it float16 gradients are smaller than without a scale
MAX_SKIPPED = 50  # steps in a row


@dataclass
class _Interval:
    """Steps between two log lines: all indices of each step and its losses, scalars on the device."""

    indices: list[np.ndarray] = field(default_factory=list)
    terms: list[dict[str, paddle.Tensor]] = field(default_factory=list)
    waited: float = 0.0
    epoch: int = 0
    step: int = 0  # the last one
    rate: float = 0.0
    fetch: Fetch | None = None
    seconds: float = 0.0

    extras: list[str] = field(default_factory=list)

    def send(self, scale: paddle.Tensor | None, grad_norm: paddle.Tensor | None = None) -> Fetch:
        """Start the copy of all losses, the loss scale and the gradient's norm to the host as one tensor."""
        scalars = [term for terms in self.terms for term in terms.values()]
        for name, extra in (("loss_scale", scale), ("grad_norm", grad_norm)):
            if extra is not None:
                self.extras.append(name)
                scalars.append(extra.reshape([]))
        self.fetch = Fetch(paddle.stack(scalars))
        return self.fetch

    def received(self) -> tuple[list[dict[str, float]], dict[str, float]]:
        """The losses of each step, and what was measured after the last one."""
        assert self.fetch is not None
        values = self.fetch.values()
        names = list(self.terms[0])
        count = len(names) * len(self.terms)
        losses = [dict(zip(names, values[i : i + len(names)], strict=True)) for i in range(0, count, len(names))]
        return losses, dict(zip(self.extras, values[count:], strict=True))


class LossLog:
    """Takes the losses of each step and hands their means to `run_logger`, an interval at a time.

    An interval is read when the next one ends: its numbers have arrived by then, so the host does not wait for
    the device. A loss that is not finite is therefore found one interval late. `flush` reads everything, and has
    to be called before weights are saved or evaluated.

    Args:
        files: path of every image, for messages.
        processes: ranks that take part in each step.
    """

    def __init__(self, run_logger: RunLogger, files: Sequence[str], processes: int):
        self._run_logger = run_logger
        self._files = files
        self._processes = processes
        self._open, self._sent = _Interval(), _Interval()

    def add(
        self,
        epoch: int,
        step: int,
        rate: float,
        indices: np.ndarray,
        terms: dict[str, paddle.Tensor],
        waited: float,
        skipped: int = 0,
    ) -> None:
        """One step; `epoch` and `step` are one-based. Nothing is fetched.

        skipped: steps in a row, up to this one, whose gradients overflowed. Raises TrainingError if these are too many.
        """
        own = self._open
        own.epoch, own.step, own.rate = epoch, step, rate
        own.indices.append(indices)
        own.terms.append(terms)
        own.waited += waited
        if skipped >= MAX_SKIPPED:
            self.flush()  # which may know a better reason
            _stop_unchanged(f"the gradients of the last {skipped} steps overflowed", step)

    def end_interval(self, scale: paddle.Tensor | None = None, grad_norm: paddle.Tensor | None = None) -> None:
        """Report the interval before, and start the copy of this one.

        Args:
            scale: of float16's losses, [1].
            grad_norm: L2 norm of the last step's gradient, [].

        Raises:
            TrainingError: a loss is not finite, or the scale is too small.
        """
        own = self._open
        own.send(scale, grad_norm)
        own.seconds = self._run_logger.lap()
        self._report(self._sent)
        self._open, self._sent = _Interval(), own

    def flush(self, scale: paddle.Tensor | None = None) -> None:
        """Report everything up to the last step. Raises as `end_interval` does."""
        sent, own = self._sent, self._open
        self._open, self._sent = _Interval(), _Interval()
        self._report(sent)
        if own.terms:
            own.send(scale).wait()  # so that the interval's time is that of the device
            own.seconds = self._run_logger.lap()
            self._report(own)

    def _report(self, interval: _Interval) -> None:
        if not interval.terms:
            return
        losses, extras = interval.received()
        scale = extras.get("loss_scale")
        first = interval.step - len(losses) + 1
        for step, (indices, terms) in enumerate(zip(interval.indices, losses, strict=True), first):
            if not all(math.isfinite(value) for value in terms.values()):
                self._stop_at(step, terms, indices, interval.rate)
        mean = {name: sum(terms[name] for terms in losses) / len(losses) for name in losses[0]}
        images = sum(len(indices) for indices in interval.indices) * self._processes
        self._run_logger.log_steps(
            interval.epoch,
            interval.step,
            len(losses),
            interval.rate,
            mean,
            images,
            interval.waited,
            interval.seconds,
            extras,
        )
        if scale is not None and scale < MIN_SCALE:
            _stop_unchanged(f"the loss scale has fallen to {scale:g}", interval.step)

    def _stop_at(self, step: int, terms: dict[str, float], indices: np.ndarray, rate: float) -> NoReturn:
        names = ", ".join(f"{name} {value}" for name, value in terms.items())
        files = "\n    ".join(self._files[i] for i in indices)
        raise TrainingError(
            f"The loss is not finite in step {step}: {names}. Files of the batch:\n    {files}",
            where=f"step {step}, learning rate {rate:g}",
            fix="Lower Train.learning_rate or lengthen Train.warmup_steps; checkpoints of earlier epochs are intact.",
            code="loss-not-finite",
        )


def _stop_unchanged(reason: str, step: int) -> NoReturn:
    raise TrainingError(
        f"Training in float16 no longer changes the weights: {reason}.",
        where=f"step {step}",
        fix="Use -o Train.amp_dtype=bfloat16 or Train.amp=OFF, or lower Train.learning_rate.",
        code="float16-stalled",
    )
