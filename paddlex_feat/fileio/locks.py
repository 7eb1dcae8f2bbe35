"""Locks that keep a second run out, and files opened so that no link or pipe misleads."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from paddlex_feat.errors import OutputError, as_output_error
from paddlex_feat.fileio.reading import NOT_A_FILE, require_file

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds for the lock of a process that is dying


_ANNOUNCED, _LOOK = 1.0, 0.1  # seconds of waiting that are announced; between two looks


@contextmanager
def locked(path: Path, shared: bool = False, patience: float | None = None) -> Iterator[None]:
    """Keep other runs out while this one writes what `path`, a file, stands for; it is made if it is not there.

    The system frees the lock of a process that dies, which takes seconds where it holds much memory. Programs that
    the process started do not hold it.

    Args:
        shared: this process is one of several of a run that holds the lock, or will.
        patience: seconds for which another holder is waited for; None is PATIENCE.

    Raises OutputError if another run holds it, or if `path` is no file.
    """
    with as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open_log(path)
    with stream:
        try:
            _wait_for_lock(stream, path.parent, shared, PATIENCE if patience is None else patience)
        except BlockingIOError:
            raise OutputError(
                "Another run of this mode writes into this folder.",
                where=str(path.parent),
                fix="Wait until it has ended, or choose another folder with -o Global.output=DIR.",
            ) from None
        except OSError:  # some network file systems
            log.warning("%s knows no locks: nothing keeps a second run out.", path.parent)
        yield


def _wait_for_lock(stream: BinaryIO, folder: Path, shared: bool, patience: float) -> None:
    """Raise BlockingIOError if another run holds the lock for longer than `patience`, OSError if there are no locks."""
    began, announced = time.monotonic(), False
    while True:
        try:
            if not shared:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nobody is there
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)  # others of this run may come
            return
        except BlockingIOError:
            waited = time.monotonic() - began
            if waited >= patience:
                raise
            if waited >= _ANNOUNCED and not announced:
                announced = True
                log.info("Another run of this mode uses %s; waiting up to %.0f s for its end.", folder, patience)
            time.sleep(_LOOK)


def open_log(path: Path) -> BinaryIO:
    """Open a file, which is made if it is not there, to read it and to write at its end. Raises OSError.

    A pipe is not waited for. A symbolic link is refused: whoever made the folder would choose what is written to.
    """
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise OSError(errno.ELOOP, "it is a symbolic link, which no log may be", str(path)) from None
        if error.errno != errno.ENXIO:  # which a pipe without a reader gives, and a socket
            raise
        raise OSError(errno.ENXIO, NOT_A_FILE, str(path)) from None
    try:
        require_file(handle, path)
        return os.fdopen(handle, "a+b")
    except BaseException:
        os.close(handle)
        raise


@contextmanager
def folder_lock(folder: Path) -> Iterator[None]:
    """Hold a folder; another process waits. The lock dies with the process and leaves no file. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
