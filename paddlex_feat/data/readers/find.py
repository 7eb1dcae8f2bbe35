"""Find a data set below a folder, recognize its format, and read its lists."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from paddlex_feat.config.registry import Registry
from paddlex_feat.data.findings import Finding
from paddlex_feat.data.images.folders import Walk
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.data.readers.shitu_rec import SHITU_REC
from paddlex_feat.data.readers.spec import ReaderSpec
from paddlex_feat.errors import DatasetError, FeatError
from paddlex_feat.fileio import lookup

log = logging.getLogger(__name__)
SEARCH_DEPTH = 4  # levels of folders below Global.dataset_dir that are searched for a data set
_SHOWN = 10

READERS: Registry[ReaderSpec] = Registry("readers", ReaderSpec, key="Global.dataset_dir")
READERS.add(SHITU_REC)


def find_root(dataset_dir: str, names: tuple[str, ...] = LISTS) -> Path:
    """The folder of the data set at or below `dataset_dir`: the one that holds all the lists `names`.

    Readers of other packages are asked only if no folder is a data set of a built-in format.

    Raises:
        DatasetError: there is no such folder, or there are several.
        DependencyError: a reader of another package is asked and cannot be imported.
    """
    top = Path(dataset_dir)
    if not os.path.isdir(dataset_dir):
        raise DatasetError(
            lookup.problem("The data set folder", dataset_dir, "folder"),
            where=f"Global.dataset_dir={dataset_dir}",
            fix=f"Give the folder that holds {_files_of_all(names)}.",
            code="dataset-folder-missing",
        )
    found: list[Path] = []
    for readers in _in_turn():
        if _is_data_set(readers, top, names):
            return top
        walk = Walk()
        found = [folder for folder in _folders(top, SEARCH_DEPTH, walk) if _is_data_set(readers, folder, names)]
        if found:
            break
    walk.log(f"Search for {_files_of_all(names)} below {top}")
    if len(found) == 1:
        return found[0]
    if not found and _holds_some(top, names):
        return top
    if not found:
        raise _not_found(top, names)
    raise DatasetError(
        f"{len(found)} folders hold a data set: {', '.join(map(str, found[:_SHOWN]))}.",
        where=f"Global.dataset_dir={dataset_dir}",
        fix="Set Global.dataset_dir to one of them.",
        code="several-datasets",
    )


def reader_of(root: Path, names: tuple[str, ...] = LISTS) -> ReaderSpec:
    """The reader of the data set in the folder `root`, which `find_root` has given: the one that knows most lists."""
    best, most = READERS.added()[0], 0
    for readers in _in_turn():
        for reader in readers:
            count = reader.count_lists(root, names)
            best, most = (reader, count) if count > most else (best, most)
        if most == len(names):
            break
    return best


def require_lists(
    dataset_dir: str, names: tuple[str, ...] = LISTS, refuse_outside: bool = False
) -> dict[str, ImageList]:
    """The lists that a mode needs, of the data set at or below `dataset_dir`.

    Args:
        dataset_dir: folder, as `Global.dataset_dir`.
        names: of the lists.
        refuse_outside: paths that lead out of the data set's folder are errors.

    Raises:
        DatasetError: there is no data set, or its lists have errors; the first of them are named.
    """
    root = find_root(dataset_dir, names)
    lists, findings = reader_of(root, names).read(root, names, refuse_outside)
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        raise _list_errors(errors, root)
    return lists


def _list_errors(errors: list[Finding], root: Path) -> DatasetError:
    shown = "\n    ".join(f"{f.where}: {f.message}" for f in errors[:_SHOWN])
    total = sum(f.count for f in errors)
    more = f"\n    … and {total - _SHOWN} more" if len(errors) > _SHOWN else ""
    return DatasetError(
        f"{total} errors in the list files:\n    {shown}{more}",
        where=str(root),
        fix="Correct those lines; Global.mode=check_dataset shows everything that is wrong.",
        code="list-errors",
    )


def _is_data_set(readers: Iterable[ReaderSpec], folder: Path, names: tuple[str, ...]) -> bool:
    return any(reader.count_lists(folder, names) == len(names) for reader in readers)


def _holds_some(folder: Path, names: tuple[str, ...]) -> bool:
    return any(reader.count_lists(folder, names) for reader in READERS)


def _not_found(top: Path, names: tuple[str, ...]) -> DatasetError:
    files = [file for reader in _usable() for file in reader.files(names)]
    hints = [lookup.explain(top / file, "file") for file in files]
    if top.name not in ("", "..") and _holds_some(top.parent, names):
        hints = [f"There are lists one folder up: give {top.parent}."]
    return DatasetError(
        f"No folder with {_files_of_all(names)}. {next(filter(None, hints), '')}".rstrip(),
        where=f"{top} and {SEARCH_DEPTH} levels of folders below",
        fix=" ".join(reader.layout for reader in _usable()),
        code="no-dataset",
    )


def _files_of_all(names: tuple[str, ...]) -> str:
    """The files of every format, in words: "train.txt, gallery.txt and query.txt"."""
    return ", or ".join(_in_words(reader.files(names)) for reader in _usable())


def _in_turn() -> Iterable[list[ReaderSpec]]:
    """The readers to try first, which need no other package; then all, if there are others."""
    own = READERS.added()
    yield own
    if len(READERS.names()) > len(own):
        yield list(READERS)


def _usable() -> Iterable[ReaderSpec]:
    """The readers whose packages can be imported, for messages."""
    for name in READERS.names():
        with suppress(FeatError):
            yield READERS.get(name)


def _in_words(words: tuple[str, ...]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _folders(top: Path, depth: int, walk: Walk) -> Iterable[Path]:
    """Folders below `top`, links followed, none twice."""
    seen, level = {top.resolve()}, [top]
    for _ in range(depth):
        below = []
        for child in (child for folder in level for child in _subfolders(folder, walk)):
            if child.resolve() not in seen:
                seen.add(child.resolve())
                below.append(child)
        yield from below
        level = below


def _subfolders(folder: Path, walk: Walk) -> list[Path]:
    try:
        return sorted(
            child for child in folder.iterdir() if child.is_dir() and not walk.leaves_out(child.name, "folders")
        )
    except PermissionError as error:
        log.warning("Folder skipped: %s (%s)", folder, error.strerror)
        return []
