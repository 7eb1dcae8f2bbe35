"""Temporary files and folders that do not outlive their process for long, even if it is killed.

The process holds a lock on each of them. Others remove those without a lock. Where the system has no such locks
(Windows) or the file system has none, those of a killed process stay.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from paddlex_feat.errors import OTHER_TEMPORARY, TEMPORARY, as_output_error
from paddlex_feat.fileio.os_locks import HAS_FLOCK, lock
from paddlex_feat.fileio.reading import open_flags

# All names are of this form, and nothing else is ever removed: a user may have a `.paddlex_feat.toml`.
_OURS = re.compile(re.escape(TEMPORARY) + r"[0-9a-f]{16}(\.[^.]*)?")


_NO_HANDLE = -1


def _new_name(folder: Path, suffix: str = "") -> str:
    return str(folder / f"{TEMPORARY}{secrets.token_hex(8)}{suffix}")


def _create_locked(create: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """Create a temporary file or folder and lock it, so that `remove_stale` of other processes leaves it alone."""
    while True:
        handle, name = create()
        if not HAS_FLOCK:
            return handle, name
        with suppress(OSError):  # a file system without locks, where remove_stale does nothing
            lock(handle)
        if os.path.lexists(name):  # else another process has removed it before it was locked
            return handle, name
        os.close(handle)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left directly in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*") if HAS_FLOCK else ():
        if not _OURS.fullmatch(path.name):
            continue
        with suppress(OSError):  # another user's, gone meanwhile, or on a file system without locks
            handle = os.open(path, (os.O_RDONLY if path.is_dir() else os.O_RDWR) | open_flags("O_NOFOLLOW"))
            try:
                if lock(handle, blocking=False):  # else its process is alive
                    _remove(path)
            finally:
                os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


class TemporaryFolder:
    """A temporary folder that is removed with the block, by `close`, or with the object.

    The one of a killed process is removed when the next one is created in the same place. Raises OutputError.

    Args:
        parent: folder in which it is created; None: the system's folder for temporary files.
        mode: its permissions, from which the system takes the process's umask.

    Attributes:
        path: the folder.
    """

    def __init__(self, parent: Path | None = None, mode: int = 0o700) -> None:
        place = parent or _temporary_folder()
        with as_output_error(place, None if parent else OTHER_TEMPORARY):
            remove_stale(place)
            handle, name = _create_locked(lambda: _new_folder(place, mode))
        self.path = Path(name)
        self.close = weakref.finalize(self, _remove_held, handle, name, os.getpid())

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *_: object) -> None:
        self.close()


def _temporary_folder() -> Path:
    with as_output_error(Path("TMPDIR"), OTHER_TEMPORARY):
        return Path(tempfile.gettempdir())


def _new_folder(parent: Path, mode: int) -> tuple[int, str]:
    while True:
        name = _new_name(parent)
        os.mkdir(name, mode)  # noqa: PTH102 - a name, as of files
        if not HAS_FLOCK:
            return _NO_HANDLE, name
        with suppress(FileNotFoundError):  # another process has taken it for a stale one
            return os.open(name, os.O_RDONLY), name


def _remove_held(handle: int, name: str, process: int) -> None:
    if process == os.getpid():  # else the folder is that of the process from which this one was forked
        shutil.rmtree(name, ignore_errors=True)
    _close(handle)


def _close(handle: int) -> None:
    if handle != _NO_HANDLE:
        os.close(handle)


_private: list[tuple[int, TemporaryFolder]] = []  # the process, and its folder
_making_private = threading.Lock()


def private_folder() -> Path:
    """A temporary folder of this process's own, made when it is first asked for, that goes with the process.

    For what other libraries keep in the home folder. Raises OutputError.
    """
    with _making_private:
        if not _private or _private[0][0] != os.getpid() or not _private[0][1].path.is_dir():
            _private[:] = [(os.getpid(), TemporaryFolder())]
        return _private[0][1].path


@contextmanager
def variable(name: str, value: str) -> Iterator[None]:
    """Within the block an environment variable has this value."""
    former = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name, None)
        if former is not None:
            os.environ[name] = former


@contextmanager
def temporary_files_in(folder: Path) -> Iterator[None]:
    """Within the block, temporary files go to `folder` where the system has no place for them.

    Python's own last resort is the working directory, which may be a data set, or a folder that cannot be written.
    Processes that are started in the block use the same folder.
    """
    former = tempfile.tempdir
    try:
        found = Path(tempfile.gettempdir())
        wished = [Path(os.environ.get(name) or "/tmp").absolute() for name in ("TMPDIR", "TEMP", "TMP")]  # noqa: S108
        usable = found in wished or found != Path.cwd()
    except OSError:  # nothing can be written, or the working directory has been removed
        usable = False
    if usable:
        yield
        return
    with TemporaryFolder(folder) as place, variable("TMPDIR", str(place)):
        tempfile.tempdir = str(place)
        try:
            yield
        finally:
            tempfile.tempdir = former


def _new_file(folder: Path, suffix: str) -> tuple[int, str]:
    name = _new_name(folder, suffix)
    # The mode that it is to have in its place: only the system can apply the umask, which belongs to all threads.
    handle = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | open_flags(), 0o666)
    if HAS_FLOCK:
        return handle, name
    os.close(handle)  # Windows renames no open file
    return _NO_HANDLE, name


@contextmanager
def temporary_file(folder: Path, suffix: str) -> Iterator[Path]:
    """An empty file in `folder` that is removed with the block, unless it was renamed. Raises OSError.

    suffix: with one dot, at its beginning, or empty.
    """
    handle, name = _create_locked(lambda: _new_file(folder, suffix))
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        _close(handle)
