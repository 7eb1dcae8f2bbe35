"""Locks of the operating system on open files. No other module locks files.

On Unix they are flock's, with shared locks and locks on folders; filelock, a package that calls flock too, offers
neither. On Windows they are filelock's. A lock ends when its file is closed, so the lock of a dead process is free.
Programs that a process starts do not inherit it, because Python opens files so.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

# flock locks folders too, and a locked file can be read, renamed and removed. On Windows none of this is so.
HAS_FLOCK = fcntl is not None


def lock(handle: int, blocking: bool = True) -> bool:
    """Lock an open file exclusively.

    Args:
        handle: file descriptor of the open file.
        blocking: wait until the lock is free.

    Returns whether the file is locked now. Raises OSError where the system or the file system has no locks.
    """
    if fcntl is None:
        from filelock import lock_descriptor

        return lock_descriptor(handle, blocking=blocking)
    return _flock(handle, fcntl.LOCK_EX if blocking else fcntl.LOCK_EX | fcntl.LOCK_NB)


def share_lock(handle: int) -> bool:
    """Lock an open file together with others, without waiting; an exclusive lock becomes a shared one.

    Returns False if somebody holds it exclusively. Where the system has no shared locks this does nothing and returns
    True. Raises OSError where the file system has no locks.
    """
    return fcntl is None or _flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)


def _flock(handle: int, operation: int) -> bool:
    try:
        fcntl.flock(handle, operation)
    except BlockingIOError:
        return False
    return True


@contextmanager
def process_lock(handle: int) -> Iterator[None]:
    """Within the block this process alone works on a file that several processes have inherited open.

    They share the open file, and with it a lock as of `lock`; this one belongs to the process. Raises OSError where the
    system has no such locks.
    """
    if fcntl is None:
        raise OSError("this system has no locks of processes")
    fcntl.lockf(handle, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.lockf(handle, fcntl.LOCK_UN)
