"""Paths in a list that lead out of the list's folder: by their text, or by a symbolic link."""

from __future__ import annotations

import os
from pathlib import Path, PureWindowsPath

from paddlex_feat.data.findings import FindingSpec
from paddlex_feat.data.lists.columns import Texts

FIX = "Move the image below the folder of {} and write its path from there."  # with the name of the list's file
LEAVES = FindingSpec(
    "path-leaves",
    "warning",
    "a path leaves the data set's folder; by a link only if it is refused",
    "Move the image below the list's folder and write its path from there.",
    otherwise="error if refused",
)
ABSOLUTE = FindingSpec("path-absolute", "warning", "a path is absolute", LEAVES.fix, otherwise="error if refused")
Problem = tuple[FindingSpec, str]  # and a message without the path, as in "/a.jpg is absolute"


def may_leave(paths: Texts) -> bool:
    """Whether `by_text` may find something in one of many paths."""
    if paths.hold(b".."):
        return True
    first, second = paths.first_bytes(), paths.first_bytes(1)
    return bool(((first == ord("/")) | (first == ord("\\")) | (second == ord(":"))).any())


def by_text(path: str) -> Problem | None:
    """What is wrong with a path that is absolute, also on Windows, or leaves its folder; None for others."""
    if ".." not in path and path[0] not in "/\\" and path[1:2] != ":":
        return None
    if path[0] in "/\\" or PureWindowsPath(path).drive:
        return ABSOLUTE, "is absolute, so the data set cannot be moved."
    if os.path.join(os.path.normpath(path.replace("\\", "/")), "").startswith("../"):
        return LEAVES, "leaves the data set's folder."
    return None


class Bounds:
    """Refuses paths outside a folder, also those of links below it; each folder is resolved once."""

    def __init__(self, root: Path):
        self._root = root
        self._inside = os.path.join(os.path.realpath(root), "")
        self._folders: dict[str, str] = {}

    def problem(self, path: str) -> Problem | None:
        """What is wrong with a path of a list in the folder; None if it stays inside."""
        problem = by_text(path)
        if problem is not None:
            return problem
        folder, name = os.path.split(path)
        real = self._folders.get(folder)
        if real is None:
            real = self._folders[folder] = os.path.join(os.path.realpath(os.path.join(self._root, folder)), "")
        target = real + name
        if os.path.islink(target) or name == "..":
            target = os.path.realpath(target)
        return None if target.startswith(self._inside) else (LEAVES, "leaves the data set's folder by a link.")
