"""Locks that keep a second run out of a folder, and files opened so that no link or pipe misleads."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from paddlex_feat.errors import OutputError, as_output_error
from paddlex_feat.fileio.os_locks import HAS_FLOCK, lock, share_lock
from paddlex_feat.fileio.reading import NOT_A_FILE, open_flags, require_file

log = logging.getLogger(__name__)

PATIENCE = 5.0  # seconds to wait for the lock of a process that is dying
_ANNOUNCE_AFTER, _RETRY = 1.0, 0.1  # seconds of waiting until a log line; seconds between two attempts


@contextmanager
def locked(path: Path, shared: bool = False, patience: float | None = None) -> Iterator[None]:
    """Hold the lock file `path`, which is created if missing, so that no second run writes to its folder.

    The system frees the lock of a process that dies; this takes seconds if the process holds much memory. Programs
    that the process has started do not hold the lock. The file stays.

    Args:
        path: the lock file; its folder is the one that the lock protects.
        shared: this process is one of several of a run, which hold the lock together.
        patience: seconds to wait for another holder; None: PATIENCE.

    Raises OutputError if another run holds the lock, or if `path` is not a regular file.
    """
    with as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open_to_append(path)
    with stream:
        try:
            free = _wait_for_lock(stream.fileno(), path.parent, shared, PATIENCE if patience is None else patience)
        except OSError:  # some network file systems
            log.warning("%s does not support locks: a second run is not kept out.", path.parent)
            free = True
        if not free:
            raise OutputError(
                "Another run of this mode writes into this folder.",
                where=str(path.parent),
                fix="Wait until it has ended, or choose another folder with -o Global.output=DIR.",
                code="folder-in-use",
            )
        yield


def _wait_for_lock(handle: int, folder: Path, shared: bool, patience: float) -> bool:
    """Whether the lock was free within `patience` seconds. Raises OSError if there are no locks."""
    began, announced = time.monotonic(), False
    # The first process of a run needs the lock to itself for a moment, then shares it with those that it starts.
    while not ((shared or lock(handle, blocking=False)) and share_lock(handle)):
        waited = time.monotonic() - began
        if waited >= patience:
            return False
        if waited >= _ANNOUNCE_AFTER and not announced:
            announced = True
            log.info("Another run of this mode uses %s; waiting up to %.0f s for its end.", folder, patience)
        time.sleep(_RETRY)
    return True


def open_to_append(path: Path) -> BinaryIO:
    """Open a log or lock file to read it and to append to it; it is created if missing. Raises OSError.

    Opening a pipe does not wait. A symbolic link is refused: whoever made the folder would choose what is written to.
    """
    linked = OSError(errno.ELOOP, "it is a symbolic link, which no log or lock may be", str(path))
    if not hasattr(os, "O_NOFOLLOW") and path.is_symlink():
        raise linked
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | open_flags("O_NOFOLLOW", "O_NONBLOCK")
    try:
        handle = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP and path.is_symlink():
            raise linked from None
        if error.errno != errno.ENXIO:  # of a pipe without a reader, and of a socket
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
    """Hold a folder; another process waits for it. The lock leaves no file in the folder. Raises OSError."""
    handle = _open_folder(folder)
    try:
        with suppress(OSError):  # a file system without locks
            lock(handle)
        yield
    finally:
        os.close(handle)


def _open_folder(folder: Path) -> int:
    """A handle to lock for a folder: its own, or that of a file which stands for it where folders cannot be locked."""
    if HAS_FLOCK:
        return os.open(folder, os.O_RDONLY)
    name = hashlib.sha256(os.path.realpath(folder).encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return os.open(Path(tempfile.gettempdir()) / f"paddlex_feat-{name}.lock", os.O_RDWR | os.O_CREAT, 0o666)
