"""What the names of files and folders say to readers."""

from __future__ import annotations

import os
import re
import time
from functools import lru_cache
from pathlib import Path

from paddlex_feat.data.images.formats import SUFFIXES
from paddlex_feat.data.readers.parts import part_of

_STEADY = 2 * 10**9  # nanoseconds since a folder was changed after which its time tells of any other change


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[str]:
    """Names of the files of a folder with one of these suffixes, not images', in order; hidden ones are left out."""
    return [name for name in _names(folder) if name.lower().endswith(suffixes)]


def folders_of_parts(folder: Path) -> dict[str, str]:
    """Names of the folders in a folder that are called as parts, in order, and the parts."""
    found = {name: part for name in _names(folder) if (part := part_of(name))}
    return {name: part for name, part in found.items() if os.path.isdir(folder / name)}


def _names(folder: Path) -> tuple[str, ...]:
    """Names in a folder, without images and hidden ones, in order. Readers ask in turn: the last ones are kept."""
    try:
        changed = os.stat(folder).st_mtime_ns
        return (_kept if time.time_ns() - changed > _STEADY else _listed)(str(folder), changed)
    except OSError:
        return ()


def _listed(folder: str, changed: int) -> tuple[str, ...]:
    names = os.listdir(folder)
    return tuple(sorted(n for n in names if n[0] != "." and os.path.splitext(n)[1].lower() not in SUFFIXES))


_kept = lru_cache(maxsize=16)(_listed)


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
