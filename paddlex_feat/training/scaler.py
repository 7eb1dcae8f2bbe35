"""The dynamic loss scale of float16."""

from __future__ import annotations

import paddle

INITIAL_LOSS_SCALE = 128.0  # of the recipe


class LossScaler(paddle.amp.GradScaler):
    """Paddle's scaler: a step whose gradients overflow is skipped and halves the scale.

    Its own `_update` prints to stdout by float(tensor of one element), an error since NumPy 2.4: the first overflow
    would end the run. This one is silent, counts, and reads nothing from the device.

    Attributes:
        skipped: steps in a row, up to the last one, that were skipped.
    """

    _scale: paddle.Tensor  # these are Paddle's
    _decr_count: int

    def __init__(self, enable: bool):
        super().__init__(enable, INITIAL_LOSS_SCALE)
        self.skipped = 0

    @property
    def scale_tensor(self) -> paddle.Tensor | None:
        """Factor of the next step's loss, float32 [1] on the device; None where the scaler is off."""
        return self._scale if self.is_enable() else None

    def _update(self) -> None:
        if self._cache_found_inf:  # a bool that the optimizer has fetched
            self.skipped += 1
            self._incr_count = 0
            self._decr_count += 1
            if self._decr_count == self._decr_every_n_nan_or_inf:
                self._scale = self._scale * self._decr_ratio
                self._decr_count = 0
        else:
            self.skipped = self._decr_count = 0
            self._incr_count += 1
            if self._incr_count == self._incr_every_n_steps:
                self._scale = self._scale * self._incr_ratio
                self._incr_count = 0
