"""Exponential moving average of the weights."""

from __future__ import annotations

import paddle
from paddle import nn


class Ema:
    """Average of every floating tensor of a network, parameters and statistics alike.

    After step t (from 1): average += (1 - d) * (weights - average) with d = min(decay, (1 + t) / (10 + t)),
    so that a short run's average is not that of its first weights (the rule of TensorFlow's
    ExponentialMovingAverage).

    Attributes:
        state: float32 tensors by name.
    """

    def __init__(self, model: nn.Layer, decay: float):
        self._decay = decay
        self._tensors = model.state_dict()
        self.state = {name: tensor.astype("float32").clone() for name, tensor in self._tensors.items()}

    @paddle.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, counted from 1."""
        rate = 1 - min(self._decay, (1 + step) / (10 + step))
        for name, average in self.state.items():
            average.add_((self._tensors[name].astype("float32") - average) * rate)

    def load(self, state: dict[str, paddle.Tensor]) -> None:
        """Take up a saved average."""
        for name, average in self.state.items():
            average.set_value(state[name])
