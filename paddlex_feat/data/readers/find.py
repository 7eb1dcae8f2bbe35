"""Find a data set below a folder, recognize its format, and read its lists."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from paddlex_feat.config.registry import Registry
from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.images.folders import Walk
from paddlex_feat.data.images.formats import SUFFIXES
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.split import Division, draw_lists
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.data.readers.class_folders import CLASS_FOLDERS
from paddlex_feat.data.readers.coco import COCO
from paddlex_feat.data.readers.image_folders import IMAGE_FOLDERS
from paddlex_feat.data.readers.items import UNDIVIDED
from paddlex_feat.data.readers.label_studio import LABEL_STUDIO
from paddlex_feat.data.readers.labelme_shapes import LABELME_SHAPES
from paddlex_feat.data.readers.parquet import PARQUET
from paddlex_feat.data.readers.published import PUBLISHED
from paddlex_feat.data.readers.remote import Fetch, resolve_addresses
from paddlex_feat.data.readers.shitu_rec import SHITU_REC
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.data.readers.tables import TABLES, is_converted, unusable_table
from paddlex_feat.data.readers.tar_shards import TAR_SHARDS
from paddlex_feat.data.readers.voc import VOC
from paddlex_feat.data.readers.yolo import YOLO
from paddlex_feat.errors import DatasetError, FeatError
from paddlex_feat.fileio import lookup

log = logging.getLogger(__name__)
SEARCH_DEPTH = 4  # levels of folders below Global.dataset_dir that are searched for a data set
_SHOWN = 10
_told: set[str] = set()  # lines of the log: modes read a data set more than once

EMPTY_LIST = FindingSpec(
    "part-without-images",
    "error",
    "a data set has no images to train with, to search in, or to ask with",
    "Add a part of that name; of a set without any parts, all three are drawn.",
)

READERS: Registry[ReaderSpec] = Registry("readers", ReaderSpec, key="Global.dataset_format")
for _spec in (
    SHITU_REC,
    TABLES,
    PARQUET,
    IMAGE_FOLDERS,
    TAR_SHARDS,
    *PUBLISHED,
    COCO,
    VOC,
    YOLO,
    LABELME_SHAPES,
    LABEL_STUDIO,
    CLASS_FOLDERS,
):
    READERS.add(_spec)


def find_root(dataset_dir: str, names: tuple[str, ...] = LISTS, form: str | None = None) -> Path:
    """The folder of the data set at or below `dataset_dir`: the one that holds all the lists `names`.

    Formats are asked in turn, each for all folders: ShiTuRecDataset; those of other packages; those with files of their
    own; class folders, which claim nearly everything.

    Args:
        dataset_dir: folder, as `Global.dataset_dir`.
        names: of the lists.
        form: name of the only reader that is asked, as `Global.dataset_format`; None: all.

    Raises:
        ConfigError: there is no reader `form`.
        DatasetError: there is no such folder, or there are several.
        DependencyError: a reader of another package is asked and cannot be imported.
    """
    top = Path(dataset_dir)
    if not os.path.isdir(dataset_dir):
        raise DatasetError(
            lookup.problem("The data set folder", dataset_dir, "folder"),
            where=f"Global.dataset_dir={dataset_dir}",
            fix=f"Give the folder that holds {_files_of_all(names, form)}.",
            code="dataset-folder-missing",
        )
    found: list[Path] = []
    for readers in _in_turn(form):
        if form is None and readers[0].generic and SHITU_REC.count_lists(top, names):
            break  # lists of which one is missing
        if _is_data_set(readers, top, names):
            _require_alone(readers, top, names, form)
            return top
        walk = Walk()
        found = [folder for folder in _folders(top, SEARCH_DEPTH, walk) if _is_data_set(readers, folder, names)]
        found = [folder for folder in found if not set(found).intersection(folder.parents)]  # train/ belongs to its set
        if found:
            break
    walk.log(f"Search for {_files_of_all(names, form)} below {top}")
    if len(found) == 1:
        _require_alone(readers, found[0], names, form)
        if form is None and readers != [SHITU_REC] and readers[0] in READERS.added():
            _require_whole(top, found[0], names)  # a format that is named, or another package's, is no guess
        return found[0]
    if not found and _holds_some(top, names):
        return top
    if not found:
        raise _not_found(top, names, form)
    raise DatasetError(
        f"{len(found)} folders hold a data set: {', '.join(map(str, found[:_SHOWN]))}.",
        where=f"Global.dataset_dir={dataset_dir}",
        fix="Set Global.dataset_dir to one of them.",
        code="several-datasets",
    )


def _require_alone(readers: list[ReaderSpec], folder: Path, names: tuple[str, ...], form: str | None) -> None:
    """Raise DatasetError for folders of classes beside a file of another format, of whose images none is found."""
    if form is not None or not readers[0].generic:
        return
    for reader in READERS.added():
        if reader not in (SHITU_REC, *PUBLISHED, *readers) and reader.count_lists(folder, names) == len(names) - 1 > 0:
            raise DatasetError(
                f"The folder has a file of the format {reader.name}, of whose images none is found, and folders of "
                "images.",
                where=str(folder),
                fix="Correct the paths in that file; or take each folder for a class: "
                f"-o Global.dataset_format={CLASS_FOLDERS.name}",
                code="several-formats",
            )


def _require_whole(top: Path, found: Path, names: tuple[str, ...]) -> None:
    """Raise DatasetError if a data set is only one of the folders of `top` that hold images."""
    for folder, below, files in os.walk(top):
        if Path(folder) == found:
            below.clear()
        elif any(os.path.splitext(file)[1].lower() in SUFFIXES for file in files):
            raise DatasetError(
                f"{found} holds a data set ({reader_of(found, names).name}), and {folder} other images.",
                where=f"Global.dataset_dir={top}",
                fix=f"Use -o Global.dataset_dir={found}, or -o Global.dataset_format={CLASS_FOLDERS.name} for all.",
                code="several-formats",
            )
        else:
            walk = Walk()
            below[:] = [name for name in below if not walk.leaves_out(name, "folders")]


def reader_of(root: Path, names: tuple[str, ...] = LISTS, form: str | None = None) -> ReaderSpec:
    """The reader of the data set in the folder `root`, which `find_root` has given: the one that knows most lists.

    Raises DatasetError if several know all of them.
    """
    best, most = READERS.get(form) if form else READERS.added()[0], 0
    for readers in _in_turn(form):
        if form is None and readers[0].generic and SHITU_REC.count_lists(root, names):
            break  # lists of which one is missing, as in `find_root`
        counts = {reader.name: reader.count_lists(root, names) for reader in readers}
        claiming = [name for name, count in counts.items() if count == len(names)]
        if TABLES.name in claiming and is_converted(root):
            return TABLES
        if len(claiming) > 1:
            raise DatasetError(
                f"The folder may be read as {' or as '.join(claiming)}.",
                where=str(root),
                fix=f"Name one of them: -o Global.dataset_format={claiming[0]}",
                code="several-formats",
            )
        for reader in readers:
            best, most = (reader, counts[reader.name]) if counts[reader.name] > most else (best, most)
        if most == len(names):
            break
    return best


def require_lists(
    dataset_dir: str,
    names: tuple[str, ...] = LISTS,
    refuse_outside: bool = False,
    form: str | None = None,
    division: Division | None = None,
    fetch: Fetch | None = None,
) -> dict[str, ImageList]:
    """The lists that a mode needs, of the data set at or below `dataset_dir`.

    Args:
        dataset_dir: folder, as `Global.dataset_dir`.
        names: of the lists.
        refuse_outside: paths that lead out of the data set's folder are errors.
        form: as for `find_root`.
        division: of a data set that has no gallery and query; None: `Division()`.
        fetch: downloads images that are addresses; None: they are errors.

    Raises:
        DatasetError: there is no data set, or its lists have errors; the first of them are named.
    """
    root = find_root(dataset_dir, names, form)
    lists, findings, _ = read_lists(root, reader_of(root, names, form), names, refuse_outside, division, fetch)
    require_no_errors(findings, root)
    return lists


def require_no_errors(findings: Iterable[Finding], root: Path) -> None:
    """Raise DatasetError if a finding is an error; the first of them are named."""
    errors = [f for f in findings if f.severity == "error"]
    if errors:
        raise _list_errors(errors, root)


def read_lists(
    root: Path,
    reader: ReaderSpec,
    names: tuple[str, ...],
    refuse_outside: bool,
    division: Division | None = None,
    fetch: Fetch | None = None,
) -> Reading:
    """Read the lists `names` of a folder that a reader recognizes; what is wrong with them are findings.

    A data set that has no gallery and query is divided in memory. How the folder was understood is logged once.

    Raises:
        DatasetError: the data set has to be divided, and is too small for that without any error in it.
    """
    lists, findings, told = read_whole(root, reader, names, refuse_outside, fetch)
    if UNDIVIDED in lists:
        whole = lists[UNDIVIDED]
        try:
            drawn, how = draw_lists(whole, division or Division())
        except DatasetError:
            if not any(finding.severity == "error" for finding in findings):
                raise
            drawn, how = {name: whole.part([], name) for name in names}, "too few images to be divided"  # see findings
        lists, told = {name: drawn[name] for name in names}, f"{told}; {how}"
    if reader is not SHITU_REC and not any(finding.severity == "error" for finding in findings):
        findings += [
            EMPTY_LIST.at(str(root), f"There are no images for {name}; {told}.") for name in lists if not lists[name]
        ]
    for records in lists.values():
        records.origin = f"{reader.name}: {told}" if told else ""
    if told and (line := f"{root}: {reader.name}: {told}") not in _told:
        _told.add(line)
        counts = ", ".join(f"{len(records)} {name}" for name, records in lists.items())
        log.info("%s. Images: %s.", line, counts)
    return Reading(lists, findings, told)


def read_whole(
    root: Path, reader: ReaderSpec, names: tuple[str, ...], refuse_outside: bool, fetch: Fetch | None = None
) -> Reading:
    """As `read_lists`, but a data set that has no gallery and query stays the one list `UNDIVIDED`."""
    lists, findings, told = Reading(*reader.read(root, names, refuse_outside))
    return Reading(lists, [*findings, *cap_per_code(resolve_addresses(lists, fetch))], told)


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
    return any(reader.count_lists(folder, names) for reader in READERS if not reader.generic)


def _not_found(top: Path, names: tuple[str, ...], form: str | None) -> DatasetError:
    readers = _mentioned(form)
    files = [file for reader in readers for file in reader.files(names)]
    hints = [lookup.explain(top / file, "file") for file in files] + ([] if form else [unusable_table(top)])
    if top.name not in ("", "..") and _holds_some(top.parent, names):
        hints = [f"There are lists one folder up: give {top.parent}."]
    others = "" if form else " docs/datasets.md shows all formats that are read."
    return DatasetError(
        f"No folder with {_files_of_all(names, form)}. {next(filter(None, hints), '')}".rstrip(),
        where=f"{top} and {SEARCH_DEPTH} levels of folders below",
        fix=" ".join(reader.layout for reader in readers) + others,
        code="no-dataset",
    )


def _files_of_all(names: tuple[str, ...], form: str | None) -> str:
    """The files of a data set, in words: "train.txt, gallery.txt and query.txt, …, or another format"."""
    words = [_in_words(reader.files(names)) for reader in _mentioned(form)]
    return ", or ".join([*words, *([] if form else ["another format that is read"])])


def _mentioned(form: str | None) -> list[ReaderSpec]:
    """The readers that messages explain: the one asked for, else lists, those of other packages, class folders."""
    if form is not None:
        return [READERS.get(form)]
    added = {reader.name for reader in READERS.added()}
    return [reader for reader in _usable() if reader is SHITU_REC or reader.generic or reader.name not in added]


def _in_turn(form: str | None) -> Iterable[list[ReaderSpec]]:
    """The readers to ask, those of a list before those of the next; other packages are imported late."""
    if form is not None:
        yield [READERS.get(form)]
        return
    yield [SHITU_REC]
    added = READERS.added()
    if len(READERS.names()) > len(added):  # who installs a reader has data for it
        known = {reader.name for reader in added}
        yield [reader for reader in READERS if reader.name not in known]
    yield [reader for reader in added if reader is not SHITU_REC and not reader.generic]
    yield [reader for reader in added if reader.generic]


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
        with os.scandir(folder) as entries:  # which knows folders without a look at each file
            names = sorted(entry.name for entry in entries if entry.is_dir())
    except PermissionError as error:
        log.warning("Folder skipped: %s (%s)", folder, error.strerror)
        return []
    return [folder / name for name in names if not walk.leaves_out(name, "folders")]
