"""Replace the three list files and label.txt together: all or none. The former ones are kept as `.bak`, `.bak.1`.

Stage the new lists, hard-link backups of the former ones, write a commit marker, rename. A run that is killed before
the marker has changed nothing. After it, `read` gives the new lists, and the next `replace_lists` finishes the renames.
A lock lets one process write at a time.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from paddlex_feat.errors import OutputError, as_output_error
from paddlex_feat.fileio.atomic import link_or_copy, write_bytes, write_text
from paddlex_feat.fileio.backups import next_backup_path
from paddlex_feat.fileio.locks import folder_lock
from paddlex_feat.fileio.reading import read_small
from paddlex_feat.fileio.temporary import remove_stale

log = logging.getLogger(__name__)

LISTS = ("train", "gallery", "query")
NAMES = "label"  # of the file of class names
_MARK = ".lists_being_replaced"


def _waiting(root: Path, name: str) -> Path:
    return root / f".{name}.txt.new"


@contextmanager
def _locked(root: Path) -> Iterator[None]:
    try:
        with as_output_error(root), folder_lock(root):
            yield
    except OutputError as error:
        raise OutputError(
            error.what,
            where=str(root),
            fix="The lists of a data set are written beside it: copy it to a folder that can be written, or free space "
            "and fix the permissions.",
            code="lists-unwritable",
        ) from error


def replace_lists(root: Path, texts: dict[str, str]) -> dict[str, Path]:
    """Write `<root>/<name>.txt` for every name; those that have the content already stay as they are.

    Args:
        root: the data set's folder.
        texts: content of each list's file, by the list's name, and of label.txt by NAMES.

    Returns:
        Paths of the former lists' backups.

    Raises:
        OutputError: the folder cannot be written; nothing has changed.
    """
    kept = {}
    with _locked(root):
        _finish(root)
        texts = {name: text for name, text in texts.items() if not _holds(root / f"{name}.txt", os.fsencode(text))}
        if not texts:
            return {}
        remove_stale(root)  # of a run that was killed before it changed anything
        for name, text in texts.items():
            write_bytes(_waiting(root, name), os.fsencode(text))  # a name that is not UTF-8 keeps its bytes
        for name in texts:
            former = root / f"{name}.txt"
            if former.exists():
                kept[name] = next_backup_path(former)
                with as_output_error(kept[name]):
                    link_or_copy(former, kept[name])
        write_text(root / _MARK, "The lists .*.txt.new are complete and about to be renamed.\n")
        _finish(root)
    for name, path in kept.items():
        log.info("The former %s.txt is now %s", name, path)
    return kept


def _holds(path: Path, content: bytes) -> bool:
    """Whether a file has this content already."""
    try:
        return path.stat().st_size == len(content) and path.read_bytes() == content
    except OSError:
        return False


def list_path(root: Path, name: str) -> Path:
    """Path of a list of a data set, also after a killed `replace_lists`."""
    new = _waiting(root, name)
    return new if new.is_file() and (root / _MARK).exists() else root / f"{name}.txt"


def read(root: Path, name: str, max_bytes: int) -> bytes:
    """The content of a list, at most `max_bytes` of it. Nothing is written. Raises OSError."""
    path = list_path(root, name)
    if path.name != f"{name}.txt":
        log.warning(
            "%s is read instead of %s.txt: a split or conversion was interrupted, and the next one finishes it. "
            "To keep the former lists, delete %s.",
            path,
            name,
            root / _MARK,
        )
    try:
        return read_small(path, max_bytes)
    except FileNotFoundError:  # it was renamed meanwhile
        return read_small(root / f"{name}.txt", max_bytes)


def _finish(root: Path) -> None:
    if not (root / _MARK).exists():
        return
    with as_output_error(root):
        for name in (*LISTS, NAMES):
            if _waiting(root, name).is_file():
                os.replace(_waiting(root, name), root / f"{name}.txt")
        (root / _MARK).unlink()
