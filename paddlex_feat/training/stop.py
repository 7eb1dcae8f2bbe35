"""Ctrl-C and SIGTERM of a training: finish the step, save, then end; or wait where they would do harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def held_back() -> Iterator[None]:
    """Within the block Ctrl-C and SIGTERM wait, and take effect when it has ended.

    For where Paddle would take the exception of a signal's handler for a failure of its own and go on.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    former = {s: signal.signal(s, lambda signum, _: came.append(signum)) for s in _SIGNALS}
    try:
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)
        for number in came[:1]:
            signal.raise_signal(number)


class StopRequest:
    """Whether somebody asked the run to end.

    Args:
        insist: a second signal raises KeyboardInterrupt. Not for one of several processes: the
            launcher signals them more than once, and kills them if they take too long.
    """

    def __init__(self, insist: bool = True) -> None:
        self.made = False
        self._insist = insist

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.made and self._insist:
            raise KeyboardInterrupt
        self.made = True

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block the first signal sets `made`, a second one raises KeyboardInterrupt."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        former = {s: signal.signal(s, self._on_signal) for s in _SIGNALS}
        try:
            yield
        finally:
            for signum, handler in former.items():
                signal.signal(signum, signal.SIG_IGN if self.made and not self._insist else handler)
