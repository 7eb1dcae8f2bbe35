"""Temporary files and folders of which nothing stays, even of a process that is killed.

Their process holds a lock on each while it lives. Whoever finds one without a lock removes it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from paddlex_feat.errors import output_errors

_MARK = ".paddlex_feat."  # how the names of all of them begin


def _hold(make: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """Make something temporary and lock it: `clear_leftovers` sees by the lock that its process lives."""
    while True:
        handle, name = make()
        with suppress(OSError):  # a file system without locks, where clear_leftovers does nothing
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.lexists(name):  # else another process has removed it before it was locked
            return handle, name
        os.close(handle)


def clear_leftovers(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left directly in `folder`."""
    for path in folder.glob(f"{_MARK}*"):
        is_folder = path.is_dir()
        with suppress(OSError):  # a living process's, another user's, or gone meanwhile
            handle = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if is_folder else path.unlink()
            finally:
                os.close(handle)


class ScratchFolder:
    """A temporary folder that goes with the block, `close`, or the object.

    That of a killed process goes when the next one is made in the same place. Raises OutputError.

    Args:
        parent: where it lies; None is the system's folder for such.

    Attributes:
        path: the folder.
    """

    def __init__(self, parent: Path | None = None) -> None:
        place = parent or Path(tempfile.gettempdir())
        clear_leftovers(place)
        with output_errors(place):
            handle, name = _hold(lambda: _new_folder(place))
        self.path = Path(name)
        self.close = weakref.finalize(self, _remove_held, handle, name)

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def _new_folder(parent: Path) -> tuple[int, str]:
    while True:
        name = tempfile.mkdtemp(prefix=_MARK, dir=parent)
        with suppress(FileNotFoundError):  # another process has taken it for a leftover
            return os.open(name, os.O_RDONLY), name


def _remove_held(handle: int, name: str) -> None:
    shutil.rmtree(name, ignore_errors=True)
    os.close(handle)


@contextmanager
def scratch_file(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    """An empty file in `folder` that goes with the block, unless it was renamed. Raises OSError."""
    handle, name = _hold(lambda: tempfile.mkstemp(prefix=f"{_MARK}{stem}.", suffix=suffix, dir=folder))
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(handle)
