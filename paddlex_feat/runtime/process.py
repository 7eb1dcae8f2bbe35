"""Process-wide state that a run changes (streams, logger, signals, temporary folder) and restores when it ends."""

from __future__ import annotations

import atexit
import io
import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

from paddlex_feat.errors import FeatError
from paddlex_feat.runtime import logs
from paddlex_feat.runtime.signals import handled, is_news

log = logging.getLogger("paddlex_feat")
_locks: dict[int, threading.Lock] = {}  # by process: one that is forked inherits no run
_in_run = threading.local()  # whether this thread has a run, such as one whose callback starts another


def end(code: int) -> NoReturn:
    """End the process as `sys.exit` does, but for libraries that would take themselves apart: Paddle for half a second.

    Streams are flushed, threads are waited for, and what has been registered for the end is done.
    """
    shutdown, registered = getattr(threading, "_shutdown", None), getattr(atexit, "_run_exitfuncs", None)
    if "paddle" not in sys.modules or shutdown is None or registered is None:
        sys.exit(code)
    try:
        shutdown()
        registered()
    finally:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            try:
                stream.flush()
            except (OSError, ValueError):  # full or closed; Python ends with 120 then
                code = code or 120
        os._exit(code)


def allow_many_files() -> None:
    """Raise the number of files that this process may open, connections among them, to what the system allows."""
    if sys.platform == "win32":
        return
    import resource

    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS allows fewer than it says
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


@contextmanager
def any_text() -> Iterator[None]:
    """Within the block, standard output and error accept file names that cannot be encoded."""
    streams = {s: s.errors for s in (sys.stdout, sys.stderr) if isinstance(s, io.TextIOWrapper)}
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in streams.items():
            with suppress(OSError, ValueError):  # it cannot be flushed, or is closed
                stream.reconfigure(errors=errors)


@contextmanager
def one_run() -> Iterator[None]:
    """One run at a time among the threads of a process, with the package's logger to itself.

    Runs share Paddle's device, its number of threads and the environment.

    Raises:
        FeatError: the run that this thread would wait for is its own.
    """
    if getattr(_in_run, "process", None) == os.getpid():
        raise FeatError(
            "A run cannot start another one in its own thread, which would wait for its own end.",
            where="callbacks",
            fix="Start it in on_end, or after the function has returned.",
            code="run-in-run",
        )
    lock = _locks.setdefault(os.getpid(), threading.Lock())
    if not lock.acquire(blocking=False):
        log.warning("Waiting for the end of another run in this process.")
        lock.acquire()
    _in_run.process = os.getpid()
    try:
        with logs.restored_logger():
            yield
    finally:
        _in_run.process = None
        lock.release()


def _interrupt(signum: int, frame: FrameType | None) -> None:
    if is_news(signum):
        raise KeyboardInterrupt


@contextmanager
def interruptible() -> Iterator[None]:
    """Within the block, signals that end a run raise KeyboardInterrupt."""
    with handled(_interrupt):
        yield
