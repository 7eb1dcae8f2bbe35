"""Parquet files: tables of paths, or with the images themselves, as Hugging Face's `datasets` stores them.

Images are unpacked once, into a file for each Parquet file in the cache folder, so that any is read in any order. That
takes the memory of a page of Parquet (1 MiB as usually written, at most 2 GiB) and of 16 images, and 100 bytes a row.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import Any

from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.images.source import ImageSource
from paddlex_feat.data.lists.outside import Bounds
from paddlex_feat.data.readers import columns as kinds
from paddlex_feat.data.readers import remote
from paddlex_feat.data.readers.columns import Rows
from paddlex_feat.data.readers.derived import Columns as Index
from paddlex_feat.data.readers.derived import Place, stored
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.names import divided_files
from paddlex_feat.data.readers.packed import MISSING, packed
from paddlex_feat.data.readers.parquet_file import (
    Layout,
    Unreadable,
    holds_image,
    images_of,
    is_parquet,
    layout_of,
    opened,
    rows_of,
)
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.data.readers.tables import finished
from paddlex_feat.errors import DependencyError
from paddlex_feat.fileio.atomic import atomic_path, require_disk_space

_MAX_GROWTH = 100  # of a file that is unpacked: images are compressed themselves, as a rule
_SLACK = 2**26  # bytes beyond that
UNREADABLE = FindingSpec("parquet-unreadable", "error", "a Parquet file is damaged", "Copy or make the file again.")
OTHER = FindingSpec(
    "parquet-other",
    "warning",
    "a Parquet file has other columns than the first, or a name without train, test or the like; it is left out",
    "Nothing, if it does not belong to the data set; else give it the same columns and a name like train-0.parquet.",
)


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists, if the first image of a file is one; one less if it cannot be found, or pyarrow is missing."""
    files = [folder / name for name in divided_files(folder, (".parquet",))]
    most = 0
    for path in islice(filter(is_parquet, files), 3):
        try:
            with opened(path) as file:
                layout = layout_of(file)
                if layout is not None:
                    most = max(most, len(names) - (not _is_sure(file, layout, path.parent)))
        except Unreadable:
            continue
        except DependencyError:
            return len(names) - 1
    return most


def _is_sure(file: Any, layout: Layout, folder: Path) -> bool:
    if layout.image != "path":
        return holds_image(file, layout)
    paths = (row[0] for row in islice(rows_of(file, layout), 20))
    return any(remote.may_be_image(path, folder) for path in paths)


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    files, items = divided_files(root, (".parquet",)), Items(root)
    divided, bounds = any(files.values()), Bounds(root)
    found: dict[str, Part] = {}
    findings: list[Finding] = []
    first: Layout | None = None
    used: list[str] = []
    if len(files) == 1:
        items.file = next(iter(files))
    for name, part in files.items():
        problem = bounds.problem(name) if refuse_outside else None
        if problem:
            findings.append(problem[0].at(name, f"{name} {problem[1]}", severity="error"))
            continue
        try:
            with opened(root / name) as file:
                layout = layout_of(file)
                fits = layout is not None and (first is None or layout.columns == first.columns)
                if layout is None or not fits or (divided and part is None and layout.columns.split is None):
                    findings.append(OTHER.at(name, f"{name} is not used."))
                    continue
                first = first or layout
                used.append(name)
                rows = Rows(name, layout.columns, layout.columns.used(), items, found, part)
                if len(layout.columns.box) == 1 and (note := rows.decide_boxes(rows_of(file, layout))):
                    findings.append(note)
                findings += cap_per_code(_read_file(file, layout, name, items, rows))
        except Unreadable as error:
            findings.append(UNREADABLE.at(name, f"The file cannot be read: {error}."))
        except OSError as error:
            findings.append(UNREADABLE.at(name, f"The file cannot be read: {error.strerror or error}."))
    findings += [MISSING.at(name, f"{name} is not there.") for name in packed(root, "parquet") if name not in files]
    columns = first.columns if first else None
    return finished(items, found, cap_per_code(findings), used or list(files), columns, names, refuse_outside)


def _read_file(file: Any, layout: Layout, name: str, items: Items, rows: Rows) -> Iterator[Finding]:
    images = _images(file, layout, name, items.root) if layout.image != "path" else None
    for number, row in enumerate(rows_of(file, layout), 1):
        image = next(images, None) if images else None
        if image is not None and not isinstance(image, ImageSource):
            row[0], image = image, None
        if finding := rows.add(row, number, image):
            yield finding


def _images(file: Any, layout: Layout, name: str, root: Path) -> Iterator[str]:
    """The image of each row: in the unpacked file, or the path of a loose one; "" for none."""
    place = Place(root / name, "parquet")
    pack = place.folder / f"{place.name}.bytes"
    index = stored(place, lambda: _unpack(file, layout, place, pack), lambda index: _is_index(index, pack))
    seen: set[str] = set()
    file_of_all = str(pack)  # one text for all images
    columns = zip(index["start"], index["length"], index["path"], strict=True)
    for number, (start, length, path) in enumerate(columns, 1):
        if length < 0:
            yield path
            continue
        own = f"{name}/{path}" if path.isprintable() and path else ""
        if not own or own in seen:
            own = f"{name}:{number}"
        seen.add(own)
        yield ImageSource(own, file_of_all, start, length)


def _unpack(file: Any, layout: Layout, place: Place, pack: Path) -> Index:
    """Write the images of a file into `pack`, each content once; returns where that of each row is."""
    # What the file declares of its columns is not asked for: pyarrow's accessors abort the program on damaged metadata.
    require_disk_space(place.folder, place.size)
    index: Index = {"start": [], "length": [], "path": []}
    known: dict[bytes, int] = {}
    size = 0
    with atomic_path(pack, fsync_dir=False) as temporary, temporary.open("wb") as stream:
        for content, path in images_of(file, layout):
            start = 0
            if content is not None:
                start = known.setdefault(blake2b(content, digest_size=16).digest(), size)
                if start == size:
                    size += stream.write(content)
                if size > _MAX_GROWTH * place.size + _SLACK:
                    raise Unreadable(f"its images have more than {_MAX_GROWTH} times its size")
            index["start"].append(start)
            index["length"].append(-1 if content is None else len(content))
            index["path"].append(path)
    return index | {"size": [size]}


def _is_index(index: Index, pack: Path) -> bool:
    """Whether columns are an index of an unpacked file that is whole, wherever they come from."""
    if set(index) != {"start", "length", "path", "size"} or len(index["size"]) != 1:
        return False
    try:
        size = os.stat(pack).st_size
    except OSError:
        return False
    starts, lengths, paths = index["start"], index["length"], index["path"]
    return (
        index["size"][0] == size
        and len(starts) == len(lengths) == len(paths)
        and all(type(number) is int for number in (*starts, *lengths))
        and all(start >= 0 and start + length <= size for start, length in zip(starts, lengths, strict=True))
        and all(isinstance(path, str) for path in paths)
    )


PARQUET = ReaderSpec(
    name="Parquet",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("Parquet files",),
    layout="Parquet files, as train-00000-of-00003.parquet, have a column of images or of their paths, and of classes.",
    findings=(UNREADABLE, OTHER, MISSING, *kinds.FINDINGS, *remote.FINDINGS),
)
