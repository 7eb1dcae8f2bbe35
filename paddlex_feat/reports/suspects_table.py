"""The table of suspects of check_dataset: every image by how likely its label is wrong, to be marked and given back."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from paddlex_feat.checks.context import RecordLocation
from paddlex_feat.checks.label_space import groups_of_lists
from paddlex_feat.checks.suspects import WRONG, Suspect
from paddlex_feat.data.findings import Finding
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers.items import MAX_DIGITS
from paddlex_feat.errors import DatasetError
from paddlex_feat.fileio.reading import decode_text, read_small
from paddlex_feat.reports.csv_tables import unguarded, write_rows

NAME = "suspects.csv"
_NEEDED = ("action", "list", "path", "label")
_MAX_BYTES = 2**28  # of a table that is read
HEAD = [
    "action", "rank", "list", "line", "path", "label", "name", "score", "margin", "own_similarity", "other_label",
    "other_name", "other_path",
]  # fmt: skip


def write_suspects(path: Path, ranked: list[Suspect]) -> None:
    """Write a row for each image, the likeliest first.

    The column action is empty, for the user to write drop or another label into it (`CheckDataset.fix: [suspects]`).

    Raises:
        OutputError: the file cannot be written.
    """
    write_rows(path, HEAD, (_row(rank, suspect) for rank, suspect in enumerate(ranked, 1)))


def marked_text(ranked: list[Suspect], findings: list[Finding]) -> str:
    """The suspects among the findings as a table that drops them all, for the user to correct; "" for none.

    It has the columns that `read_marks` needs.
    """
    found = {finding.where for finding in findings if finding.code == WRONG.code}
    records = [suspect.record for suspect in ranked if suspect.record.where in found]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_NEEDED)
    writer.writerows(["drop", record.list, record.path, record.label] for record in records)
    return text.getvalue() if records else ""


def _row(rank: int, suspect: Suspect) -> list[str | int | float]:
    record, other = suspect.record, suspect.other[0]
    return [
        "",
        rank,
        record.list,
        record.records.lines[record.position] if record.records.lines else "",
        record.path,
        record.label,
        _name(record),
        round(suspect.score, 4),
        round(suspect.margin, 4),
        round(suspect.own, 4),
        other.label,
        _name(other),
        other.path,
    ]


def _name(record: RecordLocation) -> str:
    return record.records.names.get(record.label, "")


Marks = dict[tuple[str, str, int], int | None]  # (list, file, label) -> another label, or None to drop the line


def read_marks(path: Path, lists: Mapping[str, ImageList]) -> Marks:
    """Read a table of suspects that a user has marked.

    A mark of an image counts in all lists that have it with that label, of those whose labels mean the same classes.

    Raises:
        DatasetError: it cannot be read, has no marks, names an image that is not there, or an action is neither empty,
            nor drop, nor a class of these lists.
    """
    rows = _marked_rows(path)
    if not rows:
        raise _wrong(path, "The column action is empty in all lines.")
    marks: Marks = {}
    groups = {name: group for group in groups_of_lists(lists) for name in group}
    found = {name: _records_of(records) for name, records in lists.items()}
    for number, row in rows:
        name, image, label, action = (row[column] for column in ("list", "path", "label", "action"))
        if name not in lists:
            raise _wrong(path, f"Line {number} names no list.")
        if (file := found[name].get((image, label))) is None:
            raise _wrong(path, f"Line {number}: {name} has no image {image[:200]!r} with the label {label[:40]!r}.")
        together = [lists[other] for other in groups[name]]
        new = None if action.lower() == "drop" else _label(action, together)
        if new is None and action.lower() != "drop":
            raise _wrong(path, f"Line {number}: the action {action[:40]!r} is neither drop nor a class of {name}.")
        for other in groups[name]:
            marks[other, file, int(label)] = new
    return marks


def _marked_rows(path: Path) -> list[tuple[int, dict[str, str]]]:
    """The lines with an action, with their numbers; a spreadsheet may have changed the separator."""
    try:
        text, _ = decode_text(read_small(path, _MAX_BYTES))
        first = text.partition("\n")[0]
        table = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count))
        lacking = [column for column in _NEEDED if column not in (table.fieldnames or [])]
        rows = [] if lacking else [(table.line_num, row) for row in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _wrong(path, f"The table cannot be read ({error}).") from error
    if lacking:
        raise _wrong(path, f"The table has no column {lacking[0]}.")
    cleaned = [(n, {k: unguarded(v).strip() for k, v in row.items() if k and isinstance(v, str)}) for n, row in rows]
    return [(n, {k: row.get(k, "") for k in _NEEDED}) for n, row in cleaned if row.get("action")]


def _records_of(records: ImageList) -> dict[tuple[str, str], str]:
    """The file of each (path, label), as the table has them."""
    pairs = zip(records.paths, records.files(), records.labels, strict=True)
    return {(str(path), str(label)): file for path, file, label in pairs}


def _label(action: str, lists: Sequence[ImageList]) -> int | None:
    """The label of the class that an action names, by the class's name or else its label; None for other texts."""
    named = next((label for records in lists for label, name in records.names.items() if name == action), None)
    if named is not None:
        return named
    number = int(action) if action.isascii() and action.isdigit() and len(action) <= MAX_DIGITS else None
    return number if any(number in records.labels for records in lists) else None


def _wrong(path: Path, what: str) -> DatasetError:
    fix = "Write drop, or the right label, into the column action of check_dataset/suspects.csv, and leave the others."
    return DatasetError(what, where=f"CheckDataset.suspects={path}", fix=fix, code="suspects-unreadable")
