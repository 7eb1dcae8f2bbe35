"""The cache folder of downloads, converted graphs and earlier checks, and the lock of its folders."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paddlex_feat.errors import DownloadError
from paddlex_feat.fileio.os_locks import lock
from paddlex_feat.fileio.paths import expand_home, fault
from paddlex_feat.fileio.temporary import private_folder
from paddlex_feat.fileio.user_folders import can_write, home

log = logging.getLogger(__name__)
ENV_CACHE = "PADDLE_PDX_CACHE_HOME"  # environment: the cache folder, of PaddleX too
_warned: set[str] = set()


def cache_folder() -> Path:
    """The folder that PADDLE_PDX_CACHE_HOME names, else ~/.paddlex.

    If ~/.paddlex does not exist and the home folder cannot be written, $XDG_CACHE_HOME/paddlex, where that is set.
    Raises DownloadError if there is no home folder either.
    """
    named, users, general = os.environ.get(ENV_CACHE), home(), os.environ.get("XDG_CACHE_HOME")
    fix = "Set it to a folder that can be written."
    if named:
        named = expand_home(named)
        wrong = fault(named, written=True)
        if wrong:
            what = f"There is no place for a cache ({wrong})."
            raise DownloadError(what, where=ENV_CACHE, fix=fix, code="cache-invalid")
        return Path(named)
    usual = users and users / ".paddlex"
    if general and not (usual and (usual.exists() or can_write(usual))):
        return Path(general) / "paddlex"
    if usual:
        return usual
    raise DownloadError("There is no home folder for a cache.", where=ENV_CACHE, fix=fix, code="cache-missing")


def cache_to_write() -> Path:
    """The cache folder; if it cannot be written, a temporary folder of this process, with a warning.

    The folder that PADDLE_PDX_CACHE_HOME names is not replaced: the user chose it.
    """
    try:
        folder = cache_folder()
        if os.environ.get(ENV_CACHE) or can_write(folder):
            return folder
        reason = f"The cache folder {folder} cannot be written"
    except DownloadError:
        reason = "There is no home folder for a cache"
    if reason not in _warned:
        _warned.add(reason)
        text = "%s: downloads and conversions are kept for this run alone. %s names another folder."
        log.warning(text, reason, ENV_CACHE)
    return private_folder() / "cache"


@contextmanager
def download_lock(folder: Path, work: str = "downloads into") -> Iterator[None]:
    """Hold a folder of the cache; another process waits, and then finds the file that the first one made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as stream:
        try:
            if not lock(stream.fileno(), blocking=False):
                log.info("Another process %s %s; waiting for it.", work, folder)
                lock(stream.fileno())
        except OSError:  # some network file systems
            log.warning("%s does not support locks: a second process is not kept out.", folder)
        yield
