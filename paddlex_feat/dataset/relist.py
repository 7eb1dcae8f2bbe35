"""Replacing the three list files together: all or none, the originals kept as `.bak`, `.bak.1`, …

New lists are written beside the old ones first, then the old ones get their second name, then a mark
says that the new ones are whole, then each takes its place. A run that was killed after the mark is
finished by `finish`, one that was killed before it has changed nothing. One process at a time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paddlex_feat.errors import output_errors
from paddlex_feat.files import alone, free_backup_name, link_or_copy, write_text
from paddlex_feat.scratch import clear_leftovers

log = logging.getLogger(__name__)

LISTS = ("train", "gallery", "query")
_MARK = ".lists_being_replaced"


def _waiting(root: Path, name: str) -> Path:
    return root / f".{name}.txt.new"


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    with output_errors(root), alone(root):
        yield


def replace_lists(root: Path, texts: dict[str, str]) -> dict[str, Path]:
    """Write `<root>/<name>.txt` for every name; return where the former ones are kept.

    Raises OutputError, with everything as it was, if the folder cannot be written.
    """
    kept = {}
    with _locked(root):
        _finish(root)
        clear_leftovers(root)  # of a run that was killed before it changed anything
        for name, text in texts.items():
            write_text(_waiting(root, name), text)
        for name in texts:
            former = root / f"{name}.txt"
            if former.exists():
                kept[name] = free_backup_name(former)
                with output_errors(kept[name]):
                    link_or_copy(former, kept[name])
        write_text(root / _MARK, "The lists .*.txt.new are whole and are about to take their places.\n")
        _finish(root)
    for name, path in kept.items():
        log.info("The former %s.txt is now %s", name, path)
    return kept


def finish(root: Path) -> None:
    """Complete what a killed `replace_lists` had begun in `root`; usually there is nothing to do."""
    if (root / _MARK).exists():
        with _locked(root):
            _finish(root)


def _finish(root: Path) -> None:
    if not (root / _MARK).exists():
        return
    with output_errors(root):
        for name in LISTS:
            if _waiting(root, name).is_file():
                os.replace(_waiting(root, name), root / f"{name}.txt")
        (root / _MARK).unlink()
