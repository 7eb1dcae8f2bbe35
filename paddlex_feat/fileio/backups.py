"""Keep what a new file replaces under a `.bak` name."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from paddlex_feat.errors import as_output_error
from paddlex_feat.fileio.atomic import link_or_copy, write_bytes

log = logging.getLogger(__name__)


def write_with_backup(path: Path, data: bytes) -> None:
    """Write a whole file; a former one with other content is kept as `.bak`, `.bak.1` and so on."""
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    if path.exists():
        kept = next_backup_path(path)
        with as_output_error(kept):
            link_or_copy(path, kept)  # not renamed: who is killed now leaves the former file in its place
        log.info("%s was there already and is now %s", path, kept.name)
    write_bytes(path, data)


def next_backup_path(path: Path) -> Path:
    """The first of `<path>.bak`, `<path>.bak.1`, … that does not exist."""
    return path.with_name(path.name + next_backup_suffix(path.parent, [path.name]))


def next_backup_suffix(folder: Path, names: Sequence[str]) -> str:
    """The first of `.bak`, `.bak.1`, `.bak.2`, … with which none of the names exists in the folder."""
    suffixes = (f".bak.{number}" if number else ".bak" for number in count())
    return next(s for s in suffixes if not any(os.path.lexists(folder / f"{name}{s}") for name in names))


def backup(path: Path) -> Path:
    """Rename `path` to its `next_backup_path` and return that."""
    target = next_backup_path(path)
    with as_output_error(target):
        path.rename(target)
    return target
