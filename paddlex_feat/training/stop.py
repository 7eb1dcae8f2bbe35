"""Signals that end a training: finish the step, save, end; or wait until a critical block is done."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from paddlex_feat.runtime.signals import ENDING, INSISTING, handled, is_news


@contextmanager
def defer_signals() -> Iterator[None]:
    """Delay signals that end a run until the end of the block.

    For calls of Paddle that would catch the KeyboardInterrupt of a signal handler and continue.
    """
    received: list[int] = []
    try:
        with handled(lambda signum, _: received.append(signum)):
            yield
    finally:
        for number in received[:1]:
            signal.raise_signal(number)


class StopSignal:
    """Records whether a signal asked the run to end.

    Args:
        second_signal_raises: a second Ctrl-C or SIGTERM raises KeyboardInterrupt. False for one of several
            processes: the launcher signals them more than once, and kills them if they take too long.

    Attributes:
        received: whether a signal has arrived.
    """

    def __init__(self, second_signal_raises: bool = True) -> None:
        self.received = False
        self._second_raises = second_signal_raises

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        is_second = is_news(signum) and self.received
        self.received = True
        if is_second and self._second_raises:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block the first signal sets `received`; a second Ctrl-C or SIGTERM raises KeyboardInterrupt."""
        try:
            with handled(self._on_signal, INSISTING):
                yield
        finally:
            if self.received and not self._second_raises:  # until the end of this process, which the launcher started
                for signum in ENDING:
                    signal.signal(signum, signal.SIG_IGN)
