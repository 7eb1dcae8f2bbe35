"""Tables of images: CSV and TSV files with a column of paths and one of classes, also open-metric-learning's.

A table may divide the data set: by a column such as split, by is_query and is_gallery, or by its own name, as train.csv
and test.csv do. Columns of a box make each line a part of its image.
"""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.images.folders import Walk, files_below, is_image
from paddlex_feat.data.images.source import file_of
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import columns as kinds
from paddlex_feat.data.readers import remote
from paddlex_feat.data.readers.columns import CONVERTED_HEAD, EMPTY, Columns, Rows
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.list_text import MAX_LIST_BYTES, decode_list
from paddlex_feat.data.readers.names import files_in, folders_of_parts
from paddlex_feat.data.readers.parts import assign, part_of, says_parts
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.fileio.reading import first_bytes, read_small

CONVERTED = "data.csv"  # what CheckDataset.convert writes
METADATA = "metadata"  # beginning of the names of tables that belong to Hugging Face's image folders
_SUFFIXES = {".csv": ",", ".tsv": "\t"}
_HEADER_BYTES = 65536
_LOOKED_FOR = 1000  # images below a folder that a table should name
_SNIFFED = 20  # lines of a table that decide whether it names images
_LINE = re.compile(r"[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+")  # as files have them, not as str.splitlines does
UNREADABLE = FindingSpec("table-unreadable", "error", "a table cannot be read", "Save it as UTF-8 text.")
SEVERAL = FindingSpec(
    "table-several", "error", "several tables name images", "Leave one, or call them train.csv, test.csv and the like."
)
OTHER = FindingSpec(
    "table-of-no-part",
    "warning",
    "beside tables of train, test or the like there is another table of images; it is left out",
    "Nothing, if it does not belong to the data set; else name it train, test, gallery or query.",
)
GBK = FindingSpec(
    "table-gbk",
    "warning",
    "a table was read as GBK text; of another code page, as those of Western Europe, names are wrong then",
    "Save it as UTF-8 text.",
)
BESIDE = FindingSpec(
    "table-images-beside",
    "warning",
    "beside the images that a table names lie others; they are left out",
    "Nothing, if they are not of the data set; if folders are its classes, -o Global.dataset_format=ClassFolders.",
)
ROW_FINDINGS = (UNREADABLE, GBK, *kinds.FINDINGS, *remote.FINDINGS)
_PLACES = ("images/", "image/", "imgs/", "img/", "train/", "photos/")  # where a table's images may lie, unsaid


def is_converted(folder: Path) -> bool:
    """Whether the folder has the table that CheckDataset.convert writes, which counts before what it was made of."""
    table = folder / CONVERTED
    return table.is_file() and first_rows(table)[:1] == [list(CONVERTED_HEAD)]


def unusable_table(folder: Path) -> str:
    """A sentence that says why a table in a folder cannot be read; "" if there is no table, or all can be."""
    for name in files_in(folder, tuple(_SUFFIXES)):
        if columns_of(folder / name) is None:
            header = ", ".join(map(repr, next(iter(first_rows(folder / name)), [])))[:200]
            return (
                f"{name} has no column of paths, as path or image, or none of classes, as label: its first line is "
                f"{header or 'empty, or not text'}."
            )
    return ""


def _tables(folder: Path) -> dict[str, str | None]:
    """The tables of images of a folder, by their headers, and the part that the name of each says.

    The converted one alone, if it is there. Where the folder has none, those in its folders train, test and the like.
    """
    if is_converted(folder):
        return {CONVERTED: None}
    found: dict[str, str | None] = {name: part_of(Path(name).stem) for name in _tables_in(folder)}
    if not found:
        below = {name: (part, _tables_in(folder / name)) for name, part in folders_of_parts(folder).items()}
        found = {f"{name}/{tables[0]}": part for name, (part, tables) in below.items() if len(tables) == 1}
    return found


def _tables_in(folder: Path) -> list[str]:
    names = [name for name in files_in(folder, tuple(_SUFFIXES)) if not name.lower().startswith(f"{METADATA}.")]
    return [name for name in names if columns_of(folder / name) is not None]


def first_rows(table: Path) -> list[list[str]]:
    """Header and first rows of a table; empty if it cannot be read."""
    try:
        text = _beginning(table)
        if table.suffix.lower() == ".jsonl":
            return _first_objects(text)
        return list(islice(csv.reader(_lines(text), delimiter=_delimiter(text, table)), _SNIFFED))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def _beginning(table: Path) -> str:
    """The first whole lines of a table. Raises OSError, UnicodeDecodeError."""
    data = first_bytes(table, _HEADER_BYTES)
    if len(data) == _HEADER_BYTES and data[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        text = data.decode("utf-16", "ignore")  # the last character may be cut
        return text[: text.rfind("\n") + 1] or text
    whole = data if len(data) < _HEADER_BYTES else data[: data.rfind(b"\n") + 1] or data
    return decode_list(whole)[0]


def columns_of(table: Path) -> Columns | None:
    """The columns of a table of images; None for other files."""
    rows = first_rows(table)
    return Columns.of(rows[0]) if rows else None


def _lines(text: str) -> Iterator[str]:
    return (match.group() for match in _LINE.finditer(text))


def _delimiter(text: str, table: Path) -> str:
    """The separator of a table, by its header: that of its suffix if the header has it, else the most frequent."""
    usual, header = _SUFFIXES[table.suffix.lower()], text.partition("\n")[0]
    return usual if usual in header else max((usual, ";", "\t", ","), key=header.count)


def _first_objects(text: str) -> list[list[str]]:
    """Header and first rows of JSON lines: a column for each key of these."""
    rows = [row for row in map(_object, islice(_lines(text), _SNIFFED)) if row]
    header = list(dict.fromkeys(key for row in rows for key in row))
    return [header, *([text_of(row.get(key)) or "" for key in header] for row in rows)] if header else []


def _object(line: str) -> dict[str, Any] | None:
    """The object of a line of JSON; None if it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def text_of(value: Any) -> str | None:
    """A value of JSON or Parquet as a table of text would have it: "" for none, numbers of a list by commas.

    None for a value that no column of ours has.
    """
    if isinstance(value, str):
        return value
    if value is None or value != value:  # pandas writes NaN for none
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (int, float)):
        return str(value) if not isinstance(value, int) or abs(value) < 2**63 else None
    if isinstance(value, list) and len(value) <= 4 and all(isinstance(each, (int, float)) for each in value):
        return ",".join(text_of(each) or "" for each in value)
    return None


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists, if an image of the first lines exists; one less if none does, for any program writes such tables."""
    tables = _tables(folder)
    return len(names) - (not any(names_files(folder / table) for table in tables)) if tables else 0


def names_files(table: Path) -> bool:
    """Whether an image of a table's first rows exists, or is an address."""
    return _prefix_of(table) is not None


def _prefix_of(table: Path) -> str | None:
    """What stands before the paths of a table: "", or the folder of its images; None if no first one exists."""
    header, *rows = first_rows(table)
    columns = Columns.of(header)
    place = header.index(columns.path) if columns else 0
    paths = [row[place].strip() for row in rows if len(row) > place]
    for prefix in ("", f"{table.stem}/", *_PLACES):
        for path in filter(None, paths):
            if remote.may_be_image(prefix + path, table.parent) or (
                "\\" in path and remote.may_be_image(prefix + path.replace("\\", "/"), table.parent)
            ):
                return prefix
    return None


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    tables, items = _tables(root), Items(root)
    if len(tables) > 1 and not any(tables.values()):
        message = f"{', '.join(tables)} all name images and classes."
        return Reading(items.lists(names), [SEVERAL.at(str(root), message)])
    used = {name: part for name, part in tables.items() if part or len(tables) == 1}
    if len(used) == 1 and len(tables) == 1:
        used = dict.fromkeys(used)  # a table alone has all parts, whatever its name
    reading = read_tables(items, used, names, refuse_outside)
    left = [OTHER.at(name, f"{name} is not used.") for name in tables if name not in used]
    if beside := _images_beside(root, reading.lists.values()):
        left.append(
            BESIDE.at(str(root), f"Of {_LOOKED_FOR} images or fewer, {beside} are not named: {', '.join(used)}.")
        )
    return reading._replace(findings=[*left, *reading.findings])


def _images_beside(root: Path, lists: Iterable[ImageList]) -> int:
    """How many of the first images below the folder no list has; 0 if that is less than half of them.

    Paths may be written in many ways: their last two parts are compared.
    """
    walk = Walk()
    found = list(islice((path for path in files_below(walk, str(root)) if is_image(path, walk)), _LOOKED_FOR))
    named = {_end(os.path.join(root, file_of(path))) for records in lists for path in records.paths}
    beside = sum(_end(path) not in named for path in found)
    return beside if 2 * beside > len(found) else 0


def _end(path: str) -> str:
    path = os.path.normpath(path) if "./" in path else path
    return "/".join(path.replace(os.sep, "/").rsplit("/", 2)[-2:])


def read_tables(items: Items, tables: dict[str, str | None], names: tuple[str, ...], refuse_outside: bool) -> Reading:
    """Read tables of text.

    Args:
        items: of the data set, empty.
        tables: path of each below the data set's folder, and its part; None: each line says it.
        names: of the lists.
        refuse_outside: as for `ReaderSpec.read`.
    """
    found: dict[str, Part] = {}
    findings: list[Finding] = []
    if len(tables) == 1:
        items.file = next(iter(tables))
    used: list[Columns] = []
    for name, part in tables.items():
        findings += cap_per_code(_read_table(name, part, items, found, used))
    columns = used[0] if used else None
    if len(tables) == 1 and columns and not (columns.split or columns.is_query or columns.is_gallery):
        _divide_by_folders(found)
    return finished(items, found, findings, list(tables), columns, names, refuse_outside)


def _divide_by_folders(found: dict[str, Part]) -> None:
    """Divide the images of a table that does not, by the folders that their paths begin with, if all are parts."""
    (whole,) = found.values() or (Part(),)
    parts = [part_of(path.partition("/")[0]) for path in whole.images]
    if None in parts or not says_parts(parts):
        return
    found.clear()
    for place, part in enumerate(parts):
        line = whole.lines[place] if whole.lines else None
        found.setdefault(str(part), Part()).add(whole.images[place], whole.classes[place], line)


def finished(
    items: Items,
    found: dict[str, Part],
    findings: list[Finding],
    files: list[str],
    columns: Columns | None,
    names: tuple[str, ...],
    refuse_outside: bool,
) -> Reading:
    """The reading of tables whose rows are in the parts `found`."""
    told = assign(items, found)
    if not items.parts:
        findings.append(EMPTY.at(items.file or str(items.root), "There is no usable image."))
    if refuse_outside:
        findings += cap_per_code(items.refuse_outside())
    shown = " and ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    described = f", columns {columns.describe()}" if columns else ""
    return Reading(items.lists(names), findings, f"{shown}{described}; {told}")


def _read_table(
    name: str, part: str | None, items: Items, found: dict[str, Part], used: list[Columns]
) -> Iterator[Finding]:
    """Add the lines of a table to the parts `found`, and its columns to `used`."""
    table = items.root / name
    try:
        text, encoding = decode_list(read_small(table, MAX_LIST_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is neither UTF-8, UTF-16 nor GBK text"
        yield UNREADABLE.at(name, f"The table cannot be read: {reason}.")
        return
    header = _header(table, text)
    columns = Columns.of(header)
    if columns is None:  # it has changed meanwhile
        yield UNREADABLE.at(name, "The table has no columns of paths and classes.")
        return
    used.append(columns)
    if encoding == "gbk":
        yield GBK.at(name, "The table is neither UTF-8 nor UTF-16 text, and was read as GBK.")
    rows = Rows(name, columns, header, items, found, part, _prefix_of(table) or "")
    if table.suffix.lower() == ".jsonl":
        yield from _add_objects(text, name, rows, columns, header)
    else:
        yield from _add_lines(text, table, name, rows)


def _header(table: Path, text: str) -> list[str]:
    """The names of a table's columns: of JSON lines the keys of all, for any line may have others."""
    if table.suffix.lower() != ".jsonl":
        return next(iter(first_rows(table)), [])
    return list(dict.fromkeys(key for line in _lines(text) for key in _object(line) or ()))


def _add_lines(text: str, table: Path, name: str, rows: Rows) -> Iterator[Finding]:
    delimiter = _delimiter(text[:_HEADER_BYTES], table)
    reader = csv.reader(_lines(text), delimiter=delimiter)
    try:
        next(reader, None)
        if note := rows.decide_boxes(islice(csv.reader(_lines(text), delimiter=delimiter), 1, None)):
            yield note
        first, before = 1, reader.line_num  # lines of the last row
        for row in reader:
            first, before = before + 1, reader.line_num
            if any(row) and (finding := rows.add(row, reader.line_num)):
                yield finding
        if before > first and text.count('"') % 2:  # the module csv takes the rest for text between quotes
            yield UNREADABLE.at(f"{name}:{first}", "A quotation mark of this line is never closed.")
    except csv.Error as error:
        yield UNREADABLE.at(f"{name}:{reader.line_num}", f"The line cannot be read: {error}.")


def _add_objects(text: str, name: str, rows: Rows, columns: Columns, header: Iterable[str]) -> Iterator[Finding]:
    keys, used = list(header), set(columns.used())
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        row = _object(line)
        if row is None:
            yield UNREADABLE.at(f"{name}:{number}", f"The line is not an object of JSON: {line[:80].strip()!r}.")
            continue
        values = [text_of(row.get(key)) if key in used else "" for key in keys]
        if None in values:
            key = keys[values.index(None)]
            yield UNREADABLE.at(f"{name}:{number}", f"{key} is neither text nor a number: {str(row[key])[:80]!r}.")
        elif finding := rows.add([value or "" for value in values], number):
            yield finding


TABLES = ReaderSpec(
    name="Table",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("a CSV file with columns path and label",),
    layout="A table, .csv or .tsv, has a column of paths relative to its folder, one of classes, and may have split, "
    "is_query, is_gallery and the corners x1, y1, x2, y2 of a box.",
    findings=(*ROW_FINDINGS, SEVERAL, OTHER, BESIDE),
)
