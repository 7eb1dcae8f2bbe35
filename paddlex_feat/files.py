"""Writing without leaving half a file, and without losing one that was there."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from paddlex_feat.errors import OutputError, output_errors
from paddlex_feat.reading import MOST_RESULT, NOT_A_FILE, read_small, require_file
from paddlex_feat.scratch import ScratchFolder, scratch_file

log = logging.getLogger(__name__)
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES}  # some network file systems
PATIENCE = 5.0  # seconds for the lock of a process that is dying
_ANNOUNCED, _LOOK = 1.0, 0.1  # seconds of waiting that are announced; between two looks
ATTEMPTS = 10  # to open a file whose folder is being exchanged, which takes two renames


def require_writable(folder: Path) -> None:
    """Make the folder if need be. Raises OutputError if nothing can be written there, before hours of work say so."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def require_room(folder: Path, size: int) -> None:
    """Raise OutputError if no file of `size` bytes fits: Paddle and OpenVINO write half of one and do not say so."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(os, "posix_fallocate"):
            with tempfile.TemporaryFile(dir=folder) as stream:
                os.posix_fallocate(stream.fileno(), 0, size)


@contextmanager
def atomic_path(path: Path, lasting: bool = True) -> Iterator[Path]:
    """Yield a temporary name in the same folder; it replaces `path` when the block succeeds.

    lasting: wait until the name is on the disk too; without it a power cut may take the whole file back.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with scratch_file(path.parent, path.suffix) as temporary:
            yield temporary
            _sync(temporary)
            temporary.replace(path)
        if lasting:
            sync_folder(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where its file system can. Raises OSError."""
    try:
        _sync(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def write_bytes(path: Path, data: bytes, lasting: bool = True) -> None:
    """Write a whole file or nothing; `lasting` as for `atomic_path`."""
    with atomic_path(path, lasting) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, indent: int = 2, ensure_ascii: bool = False, lasting: bool = True) -> None:
    """Write JSON; NaN is refused, because JSON has none. `lasting` as for `atomic_path`."""
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates, which \\udcff writes in JSON's own way.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"), lasting)


@contextmanager
def locked(path: Path, joins: bool = False, patience: float | None = None) -> Iterator[None]:
    """Keep other runs out while this one writes what `path`, a file, stands for; it is made if it is not there.

    The system frees the lock of a process that dies, which takes seconds where it holds much memory. Programs that
    the process started do not hold it.

    Args:
        joins: this process is one of several of a run that holds the lock, or will.
        patience: seconds for which another holder is waited for; None is PATIENCE.

    Raises OutputError if another run holds it, or if `path` is no file.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        stream = open_log(path)
    with stream:
        try:
            _wait_for_lock(stream, path.parent, joins, PATIENCE if patience is None else patience)
        except BlockingIOError:
            raise OutputError(
                "Another run of this mode writes into this folder.",
                where=str(path.parent),
                fix="Wait until it has ended, or choose another folder with -o Global.output=DIR.",
            ) from None
        except OSError:  # some network file systems
            log.warning("%s knows no locks: nothing keeps a second run out.", path.parent)
        yield


def _wait_for_lock(stream: BinaryIO, folder: Path, joins: bool, patience: float) -> None:
    """Raise BlockingIOError if another run holds the lock for longer than `patience`, OSError if there are no locks."""
    began, announced = time.monotonic(), False
    while True:
        try:
            if not joins:
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
def alone(folder: Path) -> Iterator[None]:
    """Hold a folder; another process waits. The lock dies with the process and leaves no file. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def read_result(path: Path) -> dict[str, Any]:
    """A result file that this program wrote; empty where there is none, or something else."""
    try:
        content = json.loads(read_small(path, MOST_RESULT))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_keeping(path: Path, data: bytes) -> None:
    """Write a whole file; what another content had this name keeps as `.bak`, `.bak.1`, …"""
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    if path.exists():
        log.info("%s was there already and is now %s", path, backup(path).name)
    write_bytes(path, data)


def _displaced(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it replaces `path` when the block succeeds.

    The exchange is two renames. If the process dies between them, `recover_folder(path)`
    puts the former folder back.
    """
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        with ScratchFolder(path.parent, 0o777) as temporary:
            yield temporary
            sync_files(temporary)
            try:
                _exchange(temporary, path)
            finally:
                recover_folder(path)  # an interrupt between the two renames
        sync_folder(path.parent)


def sync_files(folder: Path) -> None:
    """Wait until all that is in a folder is on the disk. Raises OSError."""
    for path in folder.rglob("*"):
        sync_folder(path) if path.is_dir() else _sync(path)
    sync_folder(folder)


def _exchange(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    with alone(path):  # a reader who finds it displaced waits
        path.rename(_displaced(path))
        temporary.rename(path)
    _remove(_displaced(path))


def _remove(folder: Path) -> None:
    """A folder with all that is in it; of a link the link alone."""
    if folder.is_symlink():
        folder.unlink()
    else:
        shutil.rmtree(folder, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Put back a folder that a killed `atomic_folder` had moved aside; wait for one at work. Not for readers."""
    if not path.name:  # "." was never exchanged
        return
    former = _displaced(path)
    if not former.exists():
        if former.is_symlink():  # and leads nowhere
            former.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError), alone(former):  # not found: its process has removed it meanwhile
        if path.exists():
            _remove(former)
        elif former.exists():
            former.rename(path)


def settled(path: Path) -> Path:
    """Where a file or folder lies now: `path`, or where an exchange of it or of its folder has left it for the moment.

    For readers: nothing is renamed, as `recover_folder` would, for a run may be at it. The path as it is if
    there is nothing at all.
    """
    places = [path]
    if path.name:
        places.append(_displaced(path))
    if path.parent.name:
        places.append(_displaced(path.parent) / path.name)
    return next((place for place in places * 2 if place.exists()), path)  # it may change places between two looks


def open_settled(path: Path) -> BinaryIO:
    """Open the file at `settled(path)`; what is open stays readable. Raises FileNotFoundError if it is no file."""
    for _ in range(ATTEMPTS):
        place = settled(path)
        with suppress(FileNotFoundError):  # exchanged since
            if place.is_file():
                return place.open("rb")
    raise FileNotFoundError(path)


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for an immutable file; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copy2(source, target)


def free_backup_name(path: Path) -> Path:
    """The first name of `.bak`, `.bak.1`, `.bak.2`, … behind `path` that is not taken."""
    target = path.with_name(path.name + ".bak")
    number = 0
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.bak.{number}")
    return target


def backup(path: Path) -> Path:
    """Rename `path` to its `free_backup_name` and return that."""
    target = free_backup_name(path)
    with output_errors(target):
        path.rename(target)
    return target
