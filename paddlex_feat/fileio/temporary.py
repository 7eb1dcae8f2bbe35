"""Temporary files and folders of which nothing stays, even of a process that is killed.

Their process holds a lock on each while it lives. Whoever finds one without a lock removes it.
"""

from __future__ import annotations

import fcntl
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

# All names are of this form, and nothing else is ever removed: a user may have a `.paddlex_feat.toml`.
_OURS = re.compile(re.escape(TEMPORARY) + r"[0-9a-f]{16}(\.[^.]*)?")


def _new_name(folder: Path, suffix: str = "") -> str:
    return str(folder / f"{TEMPORARY}{secrets.token_hex(8)}{suffix}")


def _hold(make: Callable[[], tuple[int, str]]) -> tuple[int, str]:
    """Make something temporary and lock it: `remove_stale` sees by the lock that its process lives."""
    while True:
        handle, name = make()
        with suppress(OSError):  # a file system without locks, where remove_stale does nothing
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.lexists(name):  # else another process has removed it before it was locked
            return handle, name
        os.close(handle)


def remove_stale(folder: Path) -> None:
    """Remove the temporary files and folders that killed processes left directly in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        if not _OURS.fullmatch(path.name):
            continue
        is_folder = path.is_dir()
        with suppress(OSError):  # a living process's, another user's, or gone meanwhile
            handle = os.open(path, (os.O_RDONLY if is_folder else os.O_RDWR) | os.O_NOFOLLOW)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path) if is_folder else path.unlink()
            finally:
                os.close(handle)


class TemporaryFolder:
    """A temporary folder that goes with the block, `close`, or the object.

    That of a killed process goes when the next one is made in the same place. Raises OutputError.

    Args:
        parent: where it lies; None is the system's folder for such.
        mode: its permissions, of which the system takes the process's umask.

    Attributes:
        path: the folder.
    """

    def __init__(self, parent: Path | None = None, mode: int = 0o700) -> None:
        place = parent or _temporary_folder()
        with as_output_error(place, None if parent else OTHER_TEMPORARY):
            remove_stale(place)
            handle, name = _hold(lambda: _new_folder(place, mode))
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
        with suppress(FileNotFoundError):  # another process has taken it for a leftover
            return os.open(name, os.O_RDONLY), name


def _remove_held(handle: int, name: str, process: int) -> None:
    if process == os.getpid():  # else the folder is that of the process from which this one was forked
        shutil.rmtree(name, ignore_errors=True)
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
    return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), name


@contextmanager
def temporary_file(folder: Path, suffix: str) -> Iterator[Path]:
    """An empty file in `folder` that goes with the block, unless it was renamed. Raises OSError.

    suffix: with one dot, at its beginning, or empty.
    """
    handle, name = _hold(lambda: _new_file(folder, suffix))
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)
        os.close(handle)
