"""Replace a whole folder in one step, and find it while that happens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from paddlex_feat.errors import as_output_error
from paddlex_feat.fileio.atomic import sync_file, sync_folder
from paddlex_feat.fileio.locks import folder_lock
from paddlex_feat.fileio.temporary import TemporaryFolder

ATTEMPTS = 10  # to open a file whose folder is being swapped, which takes two renames


def _swap_name(path: Path) -> Path:
    return path.with_name(f".{path.name}.replaced")


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder beside `path`; it replaces `path` when the block succeeds.

    The swap is two renames. If the process dies between them, `recover_folder(path)` puts the former folder back.
    """
    with as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        with TemporaryFolder(path.parent, 0o777) as temporary:
            yield temporary
            sync_files(temporary)
            try:
                _exchange(temporary, path)
            finally:
                recover_folder(path)  # an interrupt between the two renames
        sync_folder(path.parent)


def sync_files(folder: Path) -> None:
    """Wait until a folder and everything in it is on the disk. Raises OSError."""
    for path in folder.rglob("*"):
        sync = sync_folder if path.is_dir() else sync_file
        sync(path)
    sync_folder(folder)


def _exchange(temporary: Path, path: Path) -> None:
    if not path.exists():
        temporary.rename(path)
        return
    with folder_lock(path):  # a reader who finds it displaced waits
        path.rename(_swap_name(path))
        temporary.rename(path)
    _remove(_swap_name(path))


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
    former = _swap_name(path)
    if not former.exists():
        if former.is_symlink():  # and leads nowhere
            former.unlink(missing_ok=True)
        return
    with suppress(FileNotFoundError), folder_lock(former):  # not found: its process has removed it meanwhile
        if path.exists():
            _remove(former)
        elif former.exists():
            former.rename(path)


def resolve_during_swap(path: Path) -> Path:
    """Current location of `path` while `atomic_folder` may be swapping it or its parent folder.

    For readers: unlike `recover_folder` it renames nothing, because a run may be at work. Returns `path` itself if
    nothing is found.
    """
    places = [path]
    if path.name:
        places.append(_swap_name(path))
    if path.parent.name:
        places.append(_swap_name(path.parent) / path.name)
    return next((place for place in places * 2 if place.exists()), path)  # twice: it may move between two looks


def open_during_swap(path: Path) -> BinaryIO:
    """Open the file that `resolve_during_swap` finds. An open file stays readable while its folder is swapped.

    Raises FileNotFoundError if there is no such file.
    """
    for _ in range(ATTEMPTS):
        place = resolve_during_swap(path)
        with suppress(FileNotFoundError):  # exchanged since
            if place.is_file():
                return place.open("rb")
    raise FileNotFoundError(path)
