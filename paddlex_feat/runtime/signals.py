"""The signals that end a run: Ctrl-C, SIGTERM, and those of closed terminals, schedulers and limits."""

from __future__ import annotations

import ctypes
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType

Handler = Callable[[int, FrameType | None], None]


def existing(*names: str) -> tuple[signal.Signals, ...]:
    """The signals of these names that the system has: Windows lacks most."""
    return tuple(signal.Signals[name] for name in names if hasattr(signal, name))


INSISTING = (signal.SIGINT, signal.SIGTERM)
# These may come in pairs, or every second: a closed terminal sends SIGHUP twice, a limit of CPU time SIGXCPU until it
# kills, systemd SIGTERM and SIGHUP together.
_OTHERS = existing("SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU")
ENDING = (*INSISTING, *_OTHERS)
_STRUCT_SIGACTION = 512  # bytes, more than any system's has
_came: list[int] = []  # in the outermost block of `handled` that is at work
_blocks = 0
_left_alone: ContextVar[bool] = ContextVar("left_alone", default=False)


def is_news(signum: int) -> bool:
    """Record a signal; does it ask for more than those before it in this run?

    The first one does, and a second Ctrl-C or SIGTERM, by which somebody insists.
    """
    insists = signum in INSISTING and any(number in INSISTING for number in _came)
    news = not _came or insists
    _came.append(signum)
    return news


@contextmanager
def handled(handler: Handler, though_ignored: Sequence[signal.Signals] = (signal.SIGTERM,)) -> Iterator[None]:
    """Within the block `handler` takes the signals that end a run; afterwards all is as before.

    In a thread other than the main one, where Python delivers no signals, nothing is changed.

    Args:
        handler: called with the signal's number and the interrupted frame.
        though_ignored: signals that are taken even if they are ignored. Others stay so, as SIGHUP under nohup.
    """
    global _blocks
    if threading.current_thread() is not threading.main_thread() or _left_alone.get():
        yield
        return
    if not _blocks:
        _came.clear()
    taken = [n for n in ENDING if n in though_ignored or signal.getsignal(n) != signal.SIG_IGN]
    with restored_handlers(taken):
        _blocks += 1
        try:
            for number in taken:
                signal.signal(number, handler)
            yield
        finally:
            _blocks -= 1


@contextmanager
def left_alone() -> Iterator[None]:
    """Within the block `handled` changes nothing: the program that called this package handles its signals itself."""
    token = _left_alone.set(True)
    try:
        yield
    finally:
        _left_alone.reset(token)


def ignore_others() -> None:
    """Let Ctrl-C and SIGTERM alone end this process and those that it starts."""
    if threading.current_thread() is threading.main_thread():
        for number in _OTHERS:
            signal.signal(number, signal.SIG_IGN)


@contextmanager
def restored_handlers(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """Put the handlers of signals back when the block ends, also those that Python does not know, as faulthandler's."""
    handlers = {number: signal.getsignal(number) for number in numbers}
    with _restored_actions(numbers):
        try:
            yield
        finally:
            if threading.current_thread() is threading.main_thread():  # elsewhere Python's table cannot have changed
                for number, handler in handlers.items():
                    if handler is not None:  # one that Python does not know
                        signal.signal(number, handler)


@contextmanager
def _restored_actions(numbers: Sequence[signal.Signals]) -> Iterator[None]:
    """The same for the C library's table; Windows has none that matters."""
    try:
        library = ctypes.CDLL(None)
    except TypeError:  # Windows
        yield
        return
    actions = {number: ctypes.create_string_buffer(_STRUCT_SIGACTION) for number in numbers}
    for number, action in actions.items():
        library.sigaction(int(number), None, action)
    try:
        yield
    finally:
        for number, action in actions.items():
            library.sigaction(int(number), action, None)
