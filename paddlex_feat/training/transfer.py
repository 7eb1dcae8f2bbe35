"""Batches to the device and losses back, without waiting for the device on a GPU."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np
import paddle

STEPS_AHEAD = 2  # steps that may be queued on the GPU; enough that it never runs dry
_POLL_SECONDS = 0.0005


def _on_gpu() -> bool:
    return bool(paddle.get_device().startswith("gpu"))


def _recorded() -> Any:
    event = paddle.device.cuda.Event()
    event.record()  # in the current stream, after everything queued so far
    return event


def _wait(event: Any) -> None:
    """Not by `synchronize`, which may hold the interpreter's lock that the loader's threads need."""
    while not event.query():
        time.sleep(_POLL_SECONDS)


class Feed:
    """Copies arrays to the current device.

    On a GPU through pinned memory, by a copy that queues behind the previous step, so the host goes on at once.
    The pinned arrays of the last steps stay referenced until the GPU has done the step that used them; by that the
    host is at most STEPS_AHEAD steps ahead. On a CPU this is paddle.to_tensor.
    """

    def __init__(self) -> None:
        self._pinned: list[paddle.Tensor] = []
        self._queued: deque[tuple[Any, list[paddle.Tensor]]] = deque()

    def __call__(self, array: np.ndarray) -> paddle.Tensor:
        """`array` on the device, with its shape and dtype."""
        if not _on_gpu():
            return paddle.to_tensor(array)
        self._pinned.append(paddle.to_tensor(array, place=paddle.CUDAPinnedPlace()))
        return self._pinned[-1].cuda(blocking=False)

    def end_step(self) -> None:
        """Everything of a step is queued: release the arrays of the step before the last STEPS_AHEAD."""
        if self._pinned:
            self._queued.append((_recorded(), self._pinned))
            self._pinned = []
        if len(self._queued) > STEPS_AHEAD:
            _wait(self._queued.popleft()[0])


class Fetch:
    """A float tensor on its way to the host. On a GPU the copy queues behind what was launched before."""

    def __init__(self, tensor: paddle.Tensor):
        self._event = None
        if _on_gpu():
            tensor = tensor.pin_memory(blocking=False)
            self._event = _recorded()
        self._tensor = tensor

    def wait(self) -> None:
        """Wait until the copy and everything launched before it is done."""
        if self._event is not None:
            _wait(self._event)

    def values(self) -> list[float]:
        """The numbers, once they have arrived."""
        self.wait()
        numbers: list[float] = self._tensor.numpy().tolist()  # of pinned memory: a copy on the host
        return numbers
