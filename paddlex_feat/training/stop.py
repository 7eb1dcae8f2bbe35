"""Ctrl-C and SIGTERM while a network trains: finish the step, save, then end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


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
        former = {s: signal.signal(s, self._on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for signum, handler in former.items():
                signal.signal(signum, signal.SIG_IGN if self.made and not self._insist else handler)
