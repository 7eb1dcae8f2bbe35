"""The table of suspects of check_dataset: every image by how likely its label is wrong, to be marked and given back."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from paddlex_feat.checks.context import RecordLocation
from paddlex_feat.checks.suspects import Suspect
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers.items import MAX_DIGITS
from paddlex_feat.errors import DatasetError
from paddlex_feat.fileio.reading import decode_text, read_small
from paddlex_feat.reports.csv_tables import unguarded, write_rows

NAME = "suspects.csv"
_MAX_BYTES = 2**28  # of a table that is read
HEAD = [
    "action", "rank", "list", "line", "path", "label", "name", "margin", "own_similarity", "other_label", "other_name",
    "other_path",
]  # fmt: skip


def write_suspects(path: Path, ranked: list[Suspect]) -> None:
    """Write a row for each image, the likeliest first.

    The column action is empty, for the user to write drop or another label into it (`CheckDataset.fix: [suspects]`).

    Raises:
        OutputError: the file cannot be written.
    """
    write_rows(path, HEAD, (_row(rank, suspect) for rank, suspect in enumerate(ranked, 1)))


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
        round(suspect.margin, 4),
        round(suspect.own, 4),
        other.label,
        _name(other),
        other.path,
    ]


def _name(record: RecordLocation) -> str:
    return record.records.names.get(record.label, "")


@dataclass(frozen=True)
class Marks:
    """What a user has written into the column action.

    Attributes:
        dropped: (list, path) of the images to take off their list.
        labels: other label of each (list, path).
    """

    dropped: frozenset[tuple[str, str]] = frozenset()
    labels: Mapping[tuple[str, str], int] = field(default_factory=dict)


def read_marks(path: Path, lists: Mapping[str, ImageList]) -> Marks:
    """Read a table of suspects that a user has marked.

    Raises:
        DatasetError: it cannot be read, or an action is neither empty, nor drop, nor a label or class name of the list.
    """
    try:
        text, _ = decode_text(read_small(path, _MAX_BYTES))
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _wrong(path, f"The table cannot be read ({error}).") from error
    dropped: set[tuple[str, str]] = set()
    labels: dict[tuple[str, str], int] = {}
    for number, row in enumerate(rows, 2):
        action, name, image = (unguarded(row.get(column) or "").strip() for column in ("action", "list", "path"))
        if not action:
            continue
        if name not in lists:
            raise _wrong(path, f"Line {number} names no list.")
        if action.lower() == "drop":
            dropped.add((name, image))
        elif (label := _label(action, lists[name])) is not None:
            labels[name, image] = label
        else:
            raise _wrong(path, f"Line {number}: the action {action[:40]!r} is neither drop nor a class of {name}.")
    return Marks(frozenset(dropped), labels)


def _label(action: str, records: ImageList) -> int | None:
    if action.isascii() and action.isdigit() and len(action) <= MAX_DIGITS:
        return int(action)
    return next((label for label, name in records.names.items() if name == action), None)


def _wrong(path: Path, what: str) -> DatasetError:
    fix = "Write drop, or the right label, into the column action of check_dataset/suspects.csv, and leave the others."
    return DatasetError(what, where=f"CheckDataset.suspects={path}", fix=fix, code="suspects-unreadable")
