"""Reading files that anybody may have put there: no pipe is waited for, nothing without an end fills the memory."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MOST_RESULT = 64 * 2**20  # bytes of a result file; as Python's objects JSON may take some 25 times as much
NOT_A_FILE = "it is a device, a pipe or a socket, not a file"


def require_file(handle: int, path: Path) -> None:
    """Raise OSError where an open handle is not of a regular file."""
    mode = os.fstat(handle).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENXIO, NOT_A_FILE, str(path))


def _open_file(path: Path) -> BinaryIO:
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe without a writer opens at once
    try:
        require_file(handle, path)
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def first_bytes(path: Path, size: int) -> bytes:
    """The beginning of a regular file. Raises OSError, also for another kind of file, which is not opened."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a device may set it going
        raise OSError(errno.ENXIO, NOT_A_FILE, str(path))
    with _open_file(path) as stream:
        return stream.read(size) or b""


def read_small(path: Path, most: int) -> bytes:
    """The content of a regular file. Raises OSError, also for what is none and for more than `most` bytes."""
    with _open_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = stream.read(min(size, most) + 1) or b""
        if len(data) > size:  # it grows meanwhile, or is one of /proc, whose sizes are 0
            data += stream.read(most) or b""
    if len(data) > most:
        raise OSError(errno.EFBIG, f"it has more than the {most:,} bytes that are read", str(path))
    return data
