"""An exported model takes its place in a folder where an earlier one may stand."""

from __future__ import annotations

import filecmp
import logging
from pathlib import Path

from paddlex_feat.errors import as_output_error
from paddlex_feat.fileio.atomic import sync_folder
from paddlex_feat.fileio.atomic_folder import sync_files
from paddlex_feat.fileio.backups import next_backup_suffix
from paddlex_feat.inference.export.convert import GRAPH_FILES
from paddlex_feat.inference.model_info import PREFIX

log = logging.getLogger(__name__)
# No engine takes a folder without inference.yml. It goes first and comes last: a model of which
# only a part was exchanged, by a killed run, is refused.
_INFO = f"{PREFIX}.yml"
_FILES = (_INFO, f"{PREFIX}.pdiparams", *sorted(GRAPH_FILES))


def place(staged: Path, folder: Path, read: Path | None = None) -> list[str]:
    """Move all files of `staged`, on the same file system, into `folder`; return their names.

    Where an earlier model differs in any file, all of its files are renamed to `.bak`, `.bak.1`, …, the same
    for each: graph, weights and inference.yml belong together. Of other files, such as weights.pdparams, which
    may be the user's own, only those are renamed whose names are taken now. Raises OutputError.

    Args:
        read: the file that was exported. It stays as it is, and what would take its place is left out.
    """
    names = sorted(file.name for file in staged.iterdir() if not _same(folder / file.name, read))
    own = [name for name in names if name not in _FILES]
    standing = [name for name in (*_FILES, *own) if (folder / name).exists()]
    if sorted(standing) == names and not filecmp.cmpfiles(staged, folder, names, shallow=False)[1]:
        return names
    with as_output_error(folder):
        sync_files(staged)
        suffix = next_backup_suffix(folder, standing)
        for name in standing:
            (folder / name).rename(folder / f"{name}{suffix}")
            log.info("%s was there already and is now %s", folder / name, f"{name}{suffix}")
        sync_folder(folder)
        for name in sorted(names, key=_INFO.__eq__):
            sync_folder(folder) if name == _INFO else None
            (staged / name).rename(folder / name)
        sync_folder(folder)
    return names


def _same(path: Path, read: Path | None) -> bool:
    return read is not None and path.exists() and path.samefile(read)
