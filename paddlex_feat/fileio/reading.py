"""Read files of unknown origin: never wait for a pipe, and never read more than a given number of bytes."""

from __future__ import annotations

import codecs
import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MAX_RESULT_BYTES = 64 * 2**20  # of a result file; as Python's objects JSON may take some 25 times as much
NOT_A_FILE = "it is a device, a pipe or a socket, not a file"


def open_flags(*names: str) -> int:
    """Flags of os.open by their names, such as "O_NONBLOCK"; those that the system lacks are left out.

    Content is read and written as it is, also on Windows.
    """
    flags = getattr(os, "O_BINARY", 0)
    for name in (*names, "O_CLOEXEC"):
        flags |= getattr(os, name, 0)
    return flags


def require_file(handle: int, path: Path) -> None:
    """Raise OSError where an open handle is not of a regular file."""
    mode = os.fstat(handle).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise OSError(errno.ENXIO, NOT_A_FILE, str(path))


def open_handle(path: Path) -> int:
    """An open handle of a regular file, to be closed by the caller. Raises OSError, also for another kind of file."""
    handle = os.open(path, os.O_RDONLY | open_flags("O_NONBLOCK"))  # a pipe without a writer opens at once
    try:
        require_file(handle, path)
    except BaseException:
        os.close(handle)
        raise
    return handle


def open_file(path: Path) -> BinaryIO:
    """A stream of a regular file's bytes. Raises OSError, also for another kind of file."""
    return os.fdopen(open_handle(path), "rb")


def first_bytes(path: Path, size: int) -> bytes:
    """The beginning of a regular file. Raises OSError, also for another kind of file, which is not opened."""
    if not stat.S_ISREG(path.stat().st_mode):  # opening a device may set it going
        raise OSError(errno.ENXIO, NOT_A_FILE, str(path))
    with open_file(path) as stream:
        return stream.read(size) or b""


def read_small(path: Path, max_bytes: int) -> bytes:
    """The content of a regular file. Raises OSError, also for another kind of file and for more than `max_bytes`."""
    with open_file(path) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = stream.read(min(size, max_bytes) + 1) or b""
        if len(data) > size:  # it grows meanwhile, or is one of /proc, whose sizes are 0
            data += stream.read(max_bytes) or b""
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"it has more than the {max_bytes:,} bytes that are read", str(path))
    return data


_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16: its mark starts with that one
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_LOOKED_AT = 4096  # bytes, in which UTF-16 without a mark is recognised


def decode_text(data: bytes) -> tuple[str, str]:
    """The text of a file and its encoding: UTF-16 (or 32) where a mark or NULs in every second byte say so, else UTF-8.

    Raises UnicodeDecodeError.
    """
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "") or _wide(data[:_LOOKED_AT])
    if encoding:
        return data.decode(encoding).removeprefix("\ufeff"), encoding[:6]
    return data.decode("utf-8-sig"), "utf-8"


def is_utf16(data: bytes) -> bool:
    """Whether bytes look like UTF-16 without a byte order mark."""
    return bool(_wide(data))


def _wide(data: bytes) -> str:
    """UTF-16 without a mark: "utf-16-le" or "utf-16-be", "" for anything else."""
    even, odd = data[::2], data[1::2]
    if len(data) < 4:
        return ""
    for name, high, low in (("utf-16-le", odd, even), ("utf-16-be", even, odd)):
        if 4 * high.count(0) > len(high) and not low.count(0):
            return name
    return ""
