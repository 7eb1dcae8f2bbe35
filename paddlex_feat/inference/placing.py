"""An exported model takes its place in a folder where an earlier one may stand."""

from __future__ import annotations

import filecmp
import logging
from pathlib import Path

from paddlex_feat.errors import output_errors
from paddlex_feat.files import backup, sync_files, sync_folder
from paddlex_feat.inference.convert import GRAPH_FILES
from paddlex_feat.inference.info import PREFIX

log = logging.getLogger(__name__)
# No engine takes a folder without inference.yml. It goes first and comes last: a model of which
# only a part was exchanged, by a killed run, is refused.
_INFO = f"{PREFIX}.yml"
_FILES = (_INFO, f"{PREFIX}.pdiparams", *sorted(GRAPH_FILES), "weights.pdparams", "weights.safetensors")


def place(staged: Path, folder: Path) -> list[str]:
    """Move all files of `staged`, on the same file system, into `folder`; return their names.

    Where an earlier model differs in any file, all of its files are renamed to `.bak`, `.bak.1`, …:
    graph, weights and inference.yml belong together. Raises OutputError.
    """
    names = sorted(file.name for file in staged.iterdir())
    standing = [name for name in _FILES if (folder / name).exists()]
    if sorted(standing) == names and not filecmp.cmpfiles(staged, folder, names, shallow=False)[1]:
        return names
    with output_errors(folder):
        sync_files(staged)
        for name in standing:
            log.info("%s of an earlier export is now %s", folder / name, backup(folder / name).name)
        sync_folder(folder)
        for name in sorted(names, key=_INFO.__eq__):
            sync_folder(folder) if name == _INFO else None
            (staged / name).rename(folder / name)
        sync_folder(folder)
    return names
