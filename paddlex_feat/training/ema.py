"""Exponential moving average of the weights."""

from __future__ import annotations

import paddle


class Ema:
    """Average of every floating tensor of a network, parameters and statistics alike.

    After step t (from 1): average += (1 - d) * (weights - average) with d = min(decay, (1 + t) / (10 + t)),
    so that a short run's average is not that of its first weights (the rule of TensorFlow's
    ExponentialMovingAverage).

    Attributes:
        decay: the largest d.
        state: float32 tensors by name.
    """

    def __init__(self, weights: dict[str, paddle.Tensor], decay: float):
        self.decay = decay
        self.state = {name: tensor.clone() for name, tensor in weights.items()}

    @paddle.no_grad()
    def update(self, weights: dict[str, paddle.Tensor], step: int) -> None:
        """Update the average with float32 weights by name, after optimizer step `step`, counted from 1."""
        # As a tensor, filled on the device: of a number, lerp_ would make one for each of the weights.
        rate = paddle.full([1], 1 - min(self.decay, (1 + step) / (10 + step)), "float32")
        for name, average in self.state.items():
            average.lerp_(weights[name], rate)

    def load(self, state: dict[str, paddle.Tensor]) -> None:
        """Load a saved average."""
        for name, average in self.state.items():
            average.set_value(state[name])
