"""Install an exported model in a folder that may hold an earlier one."""

from __future__ import annotations

import filecmp
import logging
from pathlib import Path

from paddlex_feat.errors import as_output_error
from paddlex_feat.fileio.atomic import sync_folder
from paddlex_feat.fileio.atomic_folder import sync_files
from paddlex_feat.fileio.backups import next_backup_suffix
from paddlex_feat.inference.export.convert import graph_file_names
from paddlex_feat.inference.model_info import PREFIX

log = logging.getLogger(__name__)
# No engine accepts a folder without inference.yml. It is moved away first and moved in last, so a model of which
# a killed run has exchanged only a part is refused.
_INFO = f"{PREFIX}.yml"


def install_export(staged: Path, folder: Path, source: Path | None = None) -> list[str]:
    """Move all files of `staged`, on the same file system, into `folder`; return their names.

    If an earlier model in `folder` differs in any file, all of its files are renamed to `.bak`, `.bak.1`, …, with the
    same suffix for each: graph, weights and inference.yml belong together. Other files, such as weights.pdparams, may
    be the user's own, and are renamed only if a new file has their name.

    Args:
        staged: folder of the new files.
        folder: where they go.
        source: the weight file that was exported. It is not touched, and a new file of its name is not installed.

    Raises OutputError.
    """
    model_files = [_INFO, f"{PREFIX}.pdiparams", *sorted(graph_file_names())]
    names = sorted(file.name for file in staged.iterdir() if not _same(folder / file.name, source))
    other_files = [name for name in names if name not in model_files]
    existing = [name for name in (*model_files, *other_files) if (folder / name).exists()]
    if sorted(existing) == names and not filecmp.cmpfiles(staged, folder, names, shallow=False)[1]:
        return names
    with as_output_error(folder):
        sync_files(staged)
        suffix = next_backup_suffix(folder, existing)
        for name in existing:
            (folder / name).rename(folder / f"{name}{suffix}")
            log.info("%s existed and is now %s", folder / name, f"{name}{suffix}")
        sync_folder(folder)
        for name in names:
            if name != _INFO:
                (staged / name).rename(folder / name)
        sync_folder(folder)
        if _INFO in names:
            (staged / _INFO).rename(folder / _INFO)
            sync_folder(folder)
    return names


def _same(path: Path, source: Path | None) -> bool:
    return source is not None and path.exists() and path.samefile(source)
