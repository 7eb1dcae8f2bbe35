"""Replacing the three list files together: all or none, the originals kept as `.bak`, `.bak.1`, …

New lists are written beside the old ones first, then the old ones get their second name, then a
journal says that the new ones are whole, then each takes its place. A run that was killed after the
journal is finished by `finish`, one that was killed before it has changed nothing.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

from paddlex_feat.files import free_backup_name, link_or_copy, output_errors, write_json, write_text

log = logging.getLogger(__name__)
_JOURNAL = ".lists_being_replaced.json"


def _waiting(root: Path, name: str) -> Path:
    return root / f".{name}.txt.new"


def replace_lists(root: Path, texts: dict[str, str]) -> dict[str, Path]:
    """Write `<root>/<name>.txt` for every name; return where the former ones are kept.

    Raises OutputError, with everything as it was, if the folder cannot be written.
    """
    finish(root)
    for leftover in (p for name in texts for p in root.glob(f".*{name}.txt*.new")):
        leftover.unlink()  # of a run that was killed before it changed anything
    kept = {}
    for name, text in texts.items():
        write_text(_waiting(root, name), text)
    for name in texts:
        former = root / f"{name}.txt"
        if former.exists():
            kept[name] = free_backup_name(former)
            with output_errors(kept[name]):
                link_or_copy(former, kept[name])
    write_json(root / _JOURNAL, sorted(texts))
    finish(root)
    for name, path in kept.items():
        log.info("The former %s.txt is now %s", name, path)
    return kept


def finish(root: Path) -> None:
    """Complete what a killed `replace_lists` had begun in `root`; usually there is nothing to do."""
    journal = root / _JOURNAL
    if not journal.is_file():
        return
    names = json.loads(journal.read_text(encoding="utf-8"))
    with output_errors(root):
        for name in names if isinstance(names, list) else []:
            new = _waiting(root, str(name))
            if new.is_file() and new.parent == root:
                os.replace(new, root / f"{name}.txt")
        journal.unlink()
