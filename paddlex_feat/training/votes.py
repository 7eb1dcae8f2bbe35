"""Votes among the processes of a job on whether one of them was told to end."""

from __future__ import annotations

import time
from collections.abc import Callable

from paddlex_feat.runtime.distributed import ProcessGroup

# Between two votes, as rank 0's clock predicts. Each vote waits for the device; Paddle's launcher kills 30 s after a
# signal, and the state has to be saved by then.
SECONDS = 2.0
_MAX_STEPS = 20  # between two votes: steps may become slower at any time


class Votes:
    """Votes on ending, at the same steps (or batches) on all ranks and at most about SECONDS apart.

    Rank 0 measures how long a step takes; each vote tells the others after how many steps the next one is due.

    Args:
        told: whether this process was told to end.
        always: vote after every step.
    """

    def __init__(self, group: ProcessGroup, told: Callable[[], bool], always: bool = False):
        self._group = group
        self._told = told
        self._always = always or group.size == 1
        self._done, self._interval, self._since = 0, 1, time.monotonic()

    def after_one(self) -> bool:
        """Count a step; whether the job is to end. All ranks call it after each of their steps."""
        self._done += 1
        return self._done >= self._interval and self.now()

    def now(self) -> bool:
        """Vote at once; whether any rank was told to end. All ranks call it at the same step."""
        now = time.monotonic()
        in_time = int(SECONDS * self._done / max(now - self._since, 1e-3))
        steps = 1 if self._always else max(1, min(_MAX_STEPS, in_time))
        told, self._interval = self._group.vote(self._told(), steps)
        self._done, self._since = 0, time.monotonic()
        return told
