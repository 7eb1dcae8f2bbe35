"""The optimizers' steps for class vectors that a step has drawn; the others stay as they are, as in Partial FC.

What these compute is what Paddle's optimizers of the same names do with a parameter that has all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from paddlex_feat.config.base import Section
from paddlex_feat.training.optimizers import AdamWParams, OptimizerContext


class RowRule(Protocol):
    """How an optimizer changes some rows of a matrix.

    Attributes:
        states: names of the arrays of the rows' shape that it keeps.
    """

    states: ClassVar[tuple[str, ...]]

    @property
    def decay(self) -> float:
        """Weight decay that is part of the gradient; 0 where `step` applies it."""

    def step(self, rows: Any, gradient: Any, states: Sequence[Any], rate: float, number: int) -> None:
        """Change rows and states in place.

        Args:
            rows: float32 [R, D].
            gradient: float32 [R, D], with `decay` times the rows; it is overwritten.
            states: an array [R, D] for each name.
            rate: learning rate.
            number: of the step, from 1.
        """

    def next(self, rows: Any, gradient: Any, states: Sequence[Any], rate: float, number: int) -> list[Any]:
        """The same of Paddle tensors, which stay as they are: returns new rows and states."""


@dataclass(frozen=True)
class MomentumRows:
    """Of the optimizer momentum: v = momentum * v + gradient, w = w - rate * v."""

    momentum: float
    decay: float
    states: ClassVar[tuple[str, ...]] = ("velocity",)

    def step(self, rows: Any, gradient: Any, states: Sequence[Any], rate: float, number: int) -> None:
        """See RowRule."""
        (velocity,) = states
        velocity *= np.float32(self.momentum)
        velocity += gradient
        np.multiply(velocity, np.float32(rate), out=gradient)
        rows -= gradient

    def next(self, rows: Any, gradient: Any, states: Sequence[Any], rate: float, number: int) -> list[Any]:
        """See RowRule."""
        velocity = self.momentum * states[0] + gradient
        return [rows - rate * velocity, velocity]


@dataclass(frozen=True)
class AdamWRows:
    """Of the optimizer adamw: Adam with decoupled weight decay, corrected by the number of all steps."""

    beta1: float
    beta2: float
    epsilon: float
    decoupled: float
    decay: float = 0.0
    states: ClassVar[tuple[str, ...]] = ("moment1", "moment2")

    def step(self, rows: Any, gradient: Any, states: Sequence[Any], rate: float, number: int) -> None:
        """See RowRule."""
        first, second = states
        rows *= np.float32(1 - rate * self.decoupled)
        first *= np.float32(self.beta1)
        first += np.float32(1 - self.beta1) * gradient
        second *= np.float32(self.beta2)
        np.multiply(gradient, gradient, out=gradient)
        second += np.float32(1 - self.beta2) * gradient
        np.sqrt(second, out=gradient)
        gradient /= np.float32((1 - self.beta2**number) ** 0.5)
        gradient += np.float32(self.epsilon)
        np.divide(first, gradient, out=gradient)
        gradient *= np.float32(rate / (1 - self.beta1**number))
        rows -= gradient

    def next(self, rows: Any, gradient: Any, states: Sequence[Any], rate: float, number: int) -> list[Any]:
        """See RowRule."""
        first = self.beta1 * states[0] + (1 - self.beta1) * gradient
        second = self.beta2 * states[1] + (1 - self.beta2) * gradient * gradient
        divisor = second.sqrt() / (1 - self.beta2**number) ** 0.5 + self.epsilon
        moved = rate / (1 - self.beta1**number) * first / divisor
        return [rows * (1 - rate * self.decoupled) - moved, first, second]


def momentum(context: OptimizerContext, params: Section) -> MomentumRows:
    """Of the optimizer momentum."""
    return MomentumRows(context.momentum, context.weight_decay)


def adamw(context: OptimizerContext, params: AdamWParams) -> AdamWRows:
    """Of the optimizer adamw."""
    return AdamWRows(params.beta1, params.beta2, params.epsilon, context.weight_decay)
