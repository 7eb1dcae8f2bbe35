"""Writing without leaving half a file, and without losing one that was there."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from paddlex_feat.errors import OutputError

log = logging.getLogger(__name__)
ATTEMPTS = 10  # to open a file whose folder is being exchanged, which takes two renames


@contextmanager
def output_errors(path: Path) -> Iterator[None]:
    """Turn an OSError while writing `path` into an OutputError that names it."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"Cannot write: {error.strerror or error}.",
            where=str(error.filename or path),
            fix="Free space, fix the permissions, or choose another folder with -o Global.output=DIR.",
        ) from error


def require_writable(folder: Path) -> None:
    """Make the folder if need be. Raises OutputError if nothing can be written there, before hours of work say so."""
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name in the same folder; it replaces `path` when the block succeeds."""
    with output_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem[:40]}.", suffix=path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_bytes(path: Path, data: bytes) -> None:
    """Write a whole file or nothing."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, indent: int = 2, ensure_ascii: bool = False) -> None:
    """Write JSON; NaN is refused, because JSON has none."""
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates, which \\udcff writes in JSON's own way.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"))


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from a run in the same folder. One that dies gives its lock up.

    Raises OutputError if another process holds it. The folder itself is locked: no file is left.
    """
    with output_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise OutputError(
            "Another run writes into this folder.",
            where=str(folder),
            fix="Wait until it has ended, or choose another folder with -o Global.output=DIR.",
        ) from None
    except OSError:  # some network file systems
        log.warning("%s knows no locks: nothing keeps a second run out.", folder)
    try:
        yield
    finally:
        os.close(handle)


def read_result(path: Path) -> dict[str, Any]:
    """A result file that this program wrote; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_keeping(path: Path, data: bytes) -> None:
    """Write a whole file; what another content had this name keeps as `.bak`, `.bak.1`, …"""
    if path.is_file() and path.read_bytes() == data:
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
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            temporary.chmod(0o777 & ~_umask())
            yield temporary
            former = _displaced(path)
            if path.exists():
                path.rename(former)
            temporary.rename(path)
            shutil.rmtree(former, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            recover_folder(path)  # an interrupt between the two renames


def recover_folder(path: Path) -> None:
    """Put back a folder that a killed `atomic_folder` had moved aside: for whoever holds the lock of the run."""
    if not path.name:  # "." was never exchanged
        return
    former = _displaced(path)
    if not former.exists():
        return
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
    else:
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
