"""Which file a decoder's warning is about.

libjpeg and libpng repair damaged data and print a line to the C library's `stderr` that names no file, and OpenCV
offers no other way to learn of it. So while an image is decoded, `stderr` is a stream of ours in memory. File
descriptor 2 stays as it is: Python's sys.stderr and other processes are not affected.

Images are decoded by several threads at once. Where something was printed meanwhile, the image is decoded once more
with all other decoders waiting: what is printed then is about it.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")
_MAX_CHARACTERS = 2000  # of what a decoder says of one image
_OF_DECODERS = (  # how the lines of libjpeg (jerror.h) and libpng begin
    "Corrupt JPEG data",
    "Premature end of JPEG",
    "Inconsistent progression sequence",
    "Invalid SOS parameters",
    "Unknown Adobe color transform",
    "Warning: unknown JFIF",
    "Application transferred",
    "libpng ",
)
_UNBUFFERED = 2  # _IONBF of stdio.h


class _Stderr:
    """The C library's `stderr`, exchanged for a stream in memory while somebody decodes."""

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        libc.fdopen.restype = ctypes.c_void_p
        self._variable = ctypes.c_void_p.in_dll(libc, "stderr")  # ValueError: not glibc
        self._usual = self._variable.value
        self._memory = os.memfd_create("decoder_warnings")
        stream = libc.fdopen(os.dup(self._memory), b"a")
        if not stream or libc.setvbuf(ctypes.c_void_p(stream), None, _UNBUFFERED, 0):
            raise OSError("no stream in memory")
        self._stream = stream

    def exchange(self) -> None:
        self._variable.value = self._stream

    def restore(self) -> None:
        self._variable.value = self._usual

    def size(self) -> int:
        return os.fstat(self._memory).st_size

    def take(self) -> str:
        """What was printed since the last call."""
        text = os.pread(self._memory, self.size(), 0).decode(errors="replace")
        os.ftruncate(self._memory, 0)
        return text


class _Decoders:
    """Counts the decoders at work, and lets one of them be alone."""

    def __init__(self, stderr: _Stderr | None):
        self._stderr = stderr
        self._changed = threading.Condition()
        self._at_work = 0
        self._alone = False

    def call(self, decode: Callable[[], T], beginnings: tuple[str, ...]) -> tuple[T, str]:
        stderr = self._stderr
        if stderr is None:
            return decode(), ""
        with self._turn(stderr):
            before = stderr.size()
            result = decode()
            silent = stderr.size() == before
        if silent:
            return result, ""
        with self._turn(stderr, alone=True):
            _pass_on(stderr.take(), beginnings)
            result = decode()
            return result, _pass_on(stderr.take(), beginnings)

    @contextmanager
    def _turn(self, stderr: _Stderr, alone: bool = False) -> Iterator[None]:
        """Decode beside others, or `alone`, after those at work and before all others."""
        with self._changed:
            while self._alone:
                self._changed.wait()
            self._alone = alone  # nobody starts from here on
            while alone and self._at_work:
                self._changed.wait()
            self._at_work += 1
            stderr.exchange()
        try:
            yield
        finally:
            with self._changed:
                self._at_work -= 1
                self._alone = self._alone and not alone
                if not self._at_work:
                    stderr.restore()
                    self._changed.notify_all()

    def forget(self) -> None:
        """Undo an exchange that a forked child has inherited."""
        if self._stderr:
            self._stderr.restore()


def _pass_on(text: str, beginnings: tuple[str, ...]) -> str:
    """Write what is not a decoder's to standard error; return the decoder's lines, at most _MAX_CHARACTERS."""
    said = []
    for line in text.splitlines():
        if line.startswith(beginnings):
            said.append(line)
        elif line:
            with suppress(OSError):
                os.write(2, f"{line}\n".encode())
    return "\n".join(said)[:_MAX_CHARACTERS]


def _new() -> _Decoders:
    try:
        return _Decoders(_Stderr())
    except (OSError, ValueError, AttributeError, TypeError):  # no glibc or memory files: lines stay without a name
        return _Decoders(None)


_decoders: _Decoders | None = None
_lock = threading.Lock()


def _forget() -> None:
    """In a forked child, whose other threads are gone and may have held the locks."""
    global _decoders, _lock
    if _decoders:
        _decoders.forget()
    _decoders, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def listen(decode: Callable[[], T], beginnings: tuple[str, ...] = _OF_DECODERS) -> tuple[T, str]:
    """Call a decoder. Returns its result and the warnings that it printed, a line each.

    Args:
        decode: may be called twice; raises what it likes.
        beginnings: of its lines. Others that are printed meanwhile still go to standard error.
    """
    global _decoders
    if _decoders is None:
        with _lock:
            _decoders = _decoders or _new()
    return _decoders.call(decode, beginnings)
