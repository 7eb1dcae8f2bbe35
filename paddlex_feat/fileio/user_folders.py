"""The home folder, and what other libraries keep in it, where it cannot be written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paddlex_feat.fileio.temporary import private_folder, variable

_BLOCK = b"\0" * 4096  # a file system or quota that is full takes names, and no content


def home() -> Path | None:
    """The user's home folder; None where the system names none, or a relative one."""
    try:
        folder = Path.home()
    except RuntimeError:  # HOME is not set, and the user has no entry, as under `docker run --user`
        return None
    return folder if folder.is_absolute() else None


def can_write(folder: Path) -> bool:
    """Can files be written in the folder, or can it be made? Nothing is left behind."""
    for place in (folder, *folder.parents):
        if os.path.lexists(place):
            break
    try:
        with tempfile.TemporaryFile(dir=place) as stream:
            stream.write(_BLOCK)
            stream.flush()
    except OSError:
        return False
    return True


@contextmanager
def home_for_paddle() -> Iterator[None]:
    """For the import of Paddle, which makes a folder in the home folder: HOME is a temporary one where that would fail.

    Paddle itself would fail, or use a folder in the system's for temporary files that all users share.
    """
    users = home()
    folder = users and users / ".cache" / "paddle" / "dataset"
    if folder and os.access(folder.parents[2], os.W_OK) and (folder.is_dir() or can_write(folder)):
        yield
        return
    with variable("HOME", str(private_folder())):
        yield


@contextmanager
def matplotlib_folder() -> Iterator[None]:
    """Within the block matplotlib's settings and list of fonts are kept in a temporary folder, if the usual one fails.

    Left to itself it would complain on standard error. Processes that are started in the block use the same folder.
    """
    if all(can_write(folder) for folder in _matplotlib_folders()):
        yield
        return
    with variable("MPLCONFIGDIR", str(private_folder() / "matplotlib")):
        yield


def _matplotlib_folders() -> Iterator[Path]:
    """Where matplotlib would write: MPLCONFIGDIR, else below XDG_CONFIG_HOME and XDG_CACHE_HOME, or the home folder."""
    configured = os.environ.get("MPLCONFIGDIR")
    if configured:
        yield Path(configured).absolute()
        return
    for base, usual in (("XDG_CONFIG_HOME", ".config"), ("XDG_CACHE_HOME", ".cache")):
        yield Path(os.environ.get(base) or (home() or Path(os.devnull)) / usual).absolute() / "matplotlib"
