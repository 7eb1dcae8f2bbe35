"""Signals that end a training: finish the step, save, then end; or wait where they would do harm."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from paddlex_feat.runtime.signals import ENDING, INSISTING, handled, is_news


@contextmanager
def held_back() -> Iterator[None]:
    """Within the block signals that end a run wait, and take effect when it has ended.

    For where Paddle would take the exception of a signal's handler for a failure of its own and go on.
    """
    came: list[int] = []
    try:
        with handled(lambda signum, _: came.append(signum)):
            yield
    finally:
        for number in came[:1]:
            signal.raise_signal(number)


class StopRequest:
    """Whether somebody asked the run to end.

    Args:
        insist: a second Ctrl-C or SIGTERM raises KeyboardInterrupt. Not for one of several processes: the
            launcher signals them more than once, and kills them if they take too long.
    """

    def __init__(self, insist: bool = True) -> None:
        self.made = False
        self._insist = insist

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        insists = is_news(signum) and self.made
        self.made = True
        if insists and self._insist:
            raise KeyboardInterrupt

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Within the block the first signal sets `made`; a second Ctrl-C or SIGTERM raises KeyboardInterrupt."""
        try:
            with handled(self._on_signal, INSISTING):
                yield
        finally:
            if self.made and not self._insist:  # until the end of this process, which the launcher started
                for signum in ENDING:
                    signal.signal(signum, signal.SIG_IGN)
