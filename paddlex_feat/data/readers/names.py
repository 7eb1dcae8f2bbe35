"""What the names of files and folders say to readers."""

from __future__ import annotations

import os
import re
from pathlib import Path

from paddlex_feat.data.readers.parts import part_of


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the files of a folder with one of these suffixes, in lower case, in order; hidden ones are left out."""
    try:
        with os.scandir(folder) as entries:
            return sorted(
                entry.name for entry in entries if entry.name.lower().endswith(suffixes) and entry.name[0] != "."
            )
    except OSError:
        return []


def folders_of_parts(folder: Path) -> dict[str, str]:
    """Names of the folders in a folder that are called as parts, in order, and the parts."""
    try:
        with os.scandir(folder) as entries:
            found = {entry.name: part for entry in entries if (part := part_of(entry.name)) and entry.is_dir()}
    except OSError:
        return {}
    return dict(sorted(found.items()))


def divided_files(folder: Path, suffixes: tuple[str, ...]) -> dict[str, str | None]:
    """Files of a data set that is stored in several: those in a folder, and in its folders train, test and the like.

    Returns the path of each below the folder, and its part by its folder or the beginning of its name, as
    train-00000.tar has it; None for other names.
    """
    found = {name: _part_of_file(name) for name in files_in(folder, suffixes)}
    for below, part in folders_of_parts(folder).items():
        found |= {f"{below}/{name}": part for name in files_in(folder / below, suffixes)}
    return found


def _part_of_file(name: str) -> str | None:
    """The part that a word of a name says, the first that does: train-00000-of-00003, imagenet-val-0001."""
    words = re.split(r"[^a-z]+", name.lower().partition(".")[0])
    return next((part for word in words if (part := part_of(word))), None)
