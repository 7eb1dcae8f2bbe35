"""Keep what a new file replaces under a `.bak` name."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from paddlex_feat.errors import as_output_error
from paddlex_feat.fileio.atomic import write_bytes

log = logging.getLogger(__name__)


def write_with_backup(path: Path, data: bytes) -> None:
    """Write a whole file; what another content had this name keeps as `.bak`, `.bak.1`, …"""
    if path.is_file() and path.stat().st_size == len(data) and path.read_bytes() == data:
        return
    if path.exists():
        log.info("%s was there already and is now %s", path, backup(path).name)
    write_bytes(path, data)


def next_backup_path(path: Path) -> Path:
    """The first name of `.bak`, `.bak.1`, `.bak.2`, … behind `path` that is not taken."""
    target = path.with_name(path.name + ".bak")
    number = 0
    while os.path.lexists(target):
        number += 1
        target = path.with_name(f"{path.name}.bak.{number}")
    return target


def backup(path: Path) -> Path:
    """Rename `path` to its `next_backup_path` and return that."""
    target = next_backup_path(path)
    with as_output_error(target):
        path.rename(target)
    return target
