"""Tables of images: CSV, TSV and Parquet files with a column of paths and one of classes, also open-metric-learning's.

A table may divide the data set: by a column such as split, by is_query and is_gallery, or by its own name, as train.csv
and test.csv do. Columns of a box make each line a part of its image.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.images.source import Box, ImageSource
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.list_text import MAX_LIST_BYTES, decode_list
from paddlex_feat.data.readers.parts import GALLERY, QUERY, TRAIN, assign, part_of
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.fileio.reading import first_bytes, read_small

# Names of columns, in lower case without spaces and underscores; the first that a table has is taken.
_PATH = ("path", "filepath", "imagepath", "imgpath", "filename", "file", "image", "img", "imagename", "imagefile")
_CLASS = (
    "label",
    "class",
    "classname",
    "labelname",
    "category",
    "target",
    "classid",
    "labelid",
    "categoryid",
    "product",
    "productid",
    "itemid",
    "identity",
    "person",
    "personid",
)
_SPLIT = ("split", "set", "subset", "part", "partition", "evaluationstatus", "usage")
_IS_QUERY, _IS_GALLERY = "isquery", "isgallery"
_BOX_COLUMNS = (("x1", "y1", "x2", "y2"), ("xmin", "ymin", "xmax", "ymax"), ("left", "top", "right", "bottom"))
_BOX = ("box", "bbox", "boxes")  # of four numbers in one column
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_SUFFIXES = {".csv": ",", ".tsv": "\t"}
_HEADER_BYTES = 65536
_SNIFFED = 20  # lines of a table that decide whether it names images
_RULE = "Give each line a path, relative to the table's folder, and a class."
UNREADABLE = FindingSpec("table-unreadable", "error", "a table cannot be read", "Save it as UTF-8 text.")
NO_PATH = FindingSpec("table-path", "error", "a line of a table has no usable path", _RULE)
NO_CLASS = FindingSpec("table-class", "error", "a line of a table has no class", _RULE)
URL = FindingSpec("table-url", "error", "a path of a table is a URL", "Download the images, and give their paths.")
BAD_BOX = FindingSpec(
    "table-box", "error", "a box of a table is not four numbers x1 < x2 and y1 < y2", "Correct the box, in pixels."
)
NO_PART = FindingSpec(
    "table-split",
    "warning",
    "a line of a table has an unknown part; it is left out",
    "Write train, gallery, query, validation or test.",
)
SEVERAL = FindingSpec(
    "table-several", "error", "several tables name images", "Leave one, or call them train.csv, test.csv and the like."
)
EMPTY = FindingSpec("table-empty", "error", "a table holds no usable image", _RULE)


@dataclass(frozen=True)
class Columns:
    """Which column of a table has what: names as in its header, None for none."""

    path: str
    label: str
    split: str | None
    is_query: str | None
    is_gallery: str | None
    box: tuple[str, ...] = ()

    @classmethod
    def of(cls, header: Iterable[str]) -> Columns | None:
        """Find the columns; None if there is none of paths or none of classes."""
        by_name = {re.sub(r"[\s_]", "", str(name)).lower(): name for name in reversed(list(header))}

        def first(names: Iterable[str]) -> str | None:
            return next((by_name[name] for name in names if name in by_name), None)

        path, label = first(_PATH), first(_CLASS)
        if path is None or label is None:
            return None
        four = next((names for names in _BOX_COLUMNS if all(name in by_name for name in names)), None)
        one = first(_BOX)
        box = tuple(by_name[name] for name in four) if four else (one,) if one else ()
        return cls(path, label, first(_SPLIT), first((_IS_QUERY,)), first((_IS_GALLERY,)), box)

    def describe(self) -> str:
        """The columns that are used, in words."""
        used = [self.path, self.label, self.split, self.is_query, self.is_gallery, *self.box]
        return ", ".join(str(name) for name in used if name is not None)


def _tables(folder: Path) -> list[Path]:
    """The files of a folder that are tables of images by their header."""
    try:
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in _SUFFIXES and not p.name.startswith("."))
    except OSError:
        return []
    return [file for file in files if _columns(file) is not None]


def _first_lines(table: Path) -> list[list[str]]:
    """Header and first rows of a table; empty if it cannot be read."""
    try:
        beginning = first_bytes(table, _HEADER_BYTES)
        text = decode_list(beginning[: beginning.rfind(b"\n") + 1] or beginning)[0]
        return list(islice(csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text, table)), _SNIFFED))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _columns(table: Path) -> Columns | None:
    lines = _first_lines(table)
    return Columns.of(lines[0]) if lines else None


def _delimiter(text: str, table: Path) -> str:
    """The separator of a table, by its header: that of its suffix if the header has it, else the most frequent."""
    usual, header = _SUFFIXES[table.suffix.lower()], text.partition("\n")[0]
    return usual if usual in header else max((usual, ";", "\t", ","), key=header.count)


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists, if an image of the first lines exists; one less if none does, for any program writes such tables."""
    tables = _tables(folder)
    return len(names) - (not any(map(_names_files, tables))) if tables else 0


def _names_files(table: Path) -> bool:
    header, *rows = _first_lines(table)
    columns = Columns.of(header)
    place = header.index(columns.path) if columns else 0
    paths = (row[place].strip() for row in rows if len(row) > place)
    return any(path and "\0" not in path and os.path.isfile(table.parent / path) for path in paths)


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    tables, items = _tables(root), Items(root)
    parts = {table: part_of(table.stem) for table in tables}
    named = [table for table in tables if parts[table]]
    if len(tables) > 1 and not named:
        message = f"{', '.join(table.name for table in tables)} all name images and classes."
        return Reading(items.lists(names), [SEVERAL.at(str(root), message)])
    used = named if len(tables) > 1 else tables
    found: dict[str, Part] = {}
    findings: list[Finding] = []
    if len(used) == 1:
        items.file = used[0].name
    for table in used:
        findings += cap_per_code(_read_table(table, parts[table] if len(used) > 1 else None, items, found))
    told = assign(items, found)
    if not items.parts:
        findings.append(EMPTY.at(items.file or str(root), "There is no usable image."))
    if refuse_outside:
        findings += cap_per_code(items.refuse_outside())
    columns = [columns.describe() for columns in map(_columns, used[:1]) if columns]
    understood = f"{' and '.join(table.name for table in used)}, columns {' '.join(columns)}; {told}"
    return Reading(items.lists(names), findings, understood)


def _read_table(table: Path, part: str | None, items: Items, found: dict[str, Part]) -> Iterator[Finding]:
    """Add the lines of a table to the parts `found`; `part` of all of them, None: each line says it."""
    try:
        text, _ = decode_list(read_small(table, MAX_LIST_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is neither UTF-8, UTF-16 nor GBK text"
        yield UNREADABLE.at(table.name, f"The table cannot be read: {reason}.")
        return
    columns = _columns(table)
    assert columns is not None
    stream = io.StringIO(text, newline="")
    reader = csv.reader(stream, delimiter=_delimiter(text.partition("\n")[0], table))
    try:
        header = {name: place for place, name in reversed(list(enumerate(next(reader))))}
        place = _Places(columns, header)
        for row in reader:
            if any(row):
                yield from _add(row, place, table, reader.line_num, part, items, found)
    except csv.Error as error:
        yield UNREADABLE.at(f"{table.name}:{reader.line_num}", f"The line cannot be read: {error}.")


class _Places:
    """Where in a row the values of `Columns` are; `None` for columns that are not there."""

    def __init__(self, columns: Columns, header: Mapping[str, int]):
        self.path, self.label = header[columns.path], header[columns.label]
        self.split, self.is_query, self.is_gallery = (
            None if name is None else header[name] for name in (columns.split, columns.is_query, columns.is_gallery)
        )
        self.box = [header[name] for name in columns.box]
        self.last = max(place for place in (self.path, self.label, self.split, *self.box) if place is not None)


def _add(
    row: list[str], place: _Places, table: Path, line: int, part: str | None, items: Items, found: dict[str, Part]
) -> Iterator[Finding]:
    where = f"{table.name}:{line}"
    if len(row) <= place.last:
        yield NO_PATH.at(where, f"The line has {len(row)} values, fewer than columns are used.")
        return
    path, name = row[place.path].strip(), row[place.label].strip()
    if not path or not path.isprintable():
        yield NO_PATH.at(where, f"The path is {path[:80]!r}.")
        return
    if _URL.match(path):
        yield URL.at(where, f"{path[:200]} is a URL.")
        return
    if not name:
        yield NO_CLASS.at(where, f"{path} has no class.")
        return
    if place.box and (values := [row[i].strip() for i in place.box]) and any(values):
        box = _box(values)
        if box is None:
            yield BAD_BOX.at(where, f"{path}: {' '.join(values)[:80]!r} is not a box.")
            return
        path = ImageSource(f"{path}[{box}]", str(items.root / path), box=box)
    parts = {part} if part else _parts(row, place)
    if not parts:
        yield NO_PART.at(where, f"{path}: the part {row[place.split or 0][:40]!r} is not known.")
    for name_of_part in parts:
        found.setdefault(name_of_part, Part()).add(path, name, line if items.file else None)
    items.leave_one_out |= len(parts) > 1


def _parts(row: list[str], place: _Places) -> set[str]:
    """The parts of a line, by its columns; those of no such column train. Empty for an unknown part."""
    own = TRAIN if place.split is None else part_of(row[place.split])
    flags = ((place.is_query, QUERY), (place.is_gallery, GALLERY))
    if any(column is not None for column, _ in flags) and (own != TRAIN or place.split is None):
        flagged = {name for column, name in flags if column is not None and _true(row, column)}
        return flagged or ({TRAIN} if place.split is None else set())
    return {own} if own else set()


def _true(row: list[str], column: int) -> bool:
    return column < len(row) and row[column].strip().lower() in ("1", "1.0", "true", "yes", "t")


def _box(values: list[str]) -> Box | None:
    """A box of four texts, or of one that holds four numbers; None if it is none."""
    if len(values) == 1:
        values = re.split(r"[\s,;]+", values[0].strip("[]() "))
    try:
        x1, y1, x2, y2 = map(float, values)
    except ValueError:
        return None
    return Box(x1, y1, x2, y2) if -1e9 < x1 < x2 < 1e9 and -1e9 < y1 < y2 < 1e9 else None


TABLES = ReaderSpec(
    name="Table",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("a CSV file with columns path and label",),
    layout="A table, .csv or .tsv, has a column of paths relative to its folder, one of classes, and may have split, "
    "is_query, is_gallery and the corners x1, y1, x2, y2 of a box.",
    findings=(UNREADABLE, NO_PATH, NO_CLASS, URL, BAD_BOX, NO_PART, SEVERAL, EMPTY),
)
