"""Text files of published data sets: a record a line, with fields between spaces; and how many records papers count."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from paddlex_feat.data.findings import Finding, FindingSpec
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.list_text import MAX_LIST_BYTES, decode_list
from paddlex_feat.fileio.reading import first_bytes, read_small

_HEAD_BYTES = 65536
_FIX = "Restore the file as it was published."
UNREADABLE = FindingSpec("published-unreadable", "error", "a file of a published data set cannot be read", _FIX)
RECORD = FindingSpec("published-record", "error", "a record of a published data set cannot be used", _FIX)
COUNTS = FindingSpec(
    "published-counts",
    "note",
    "a published data set has other numbers of images or classes than papers count",
    "Nothing, if it is meant to be a part of the data set; else restore what is missing.",
)
EMPTY = FindingSpec(
    "published-empty", "error", "a published data set has no image for a list", "Restore what is missing."
)
FINDINGS = (UNREADABLE, RECORD, COUNTS, EMPTY)


def first_lines(file: Path) -> list[list[str]]:
    """The fields of the first lines of a text file, without blank lines; empty if it cannot be read."""
    try:
        beginning = first_bytes(file, _HEAD_BYTES)
        whole = beginning if len(beginning) < _HEAD_BYTES else beginning[: beginning.rfind(b"\n") + 1]
        return [line.split() for _, line in _lines(decode_list(whole)[0])]
    except (OSError, UnicodeDecodeError):
        return []


def read_lines(root: Path, file: str, findings: list[Finding]) -> Iterator[tuple[int, str]]:
    """The lines of a text file that are not blank, with their numbers, from 1; an unreadable file is a finding."""
    try:
        text, _ = decode_list(read_small(root / file, MAX_LIST_BYTES))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8, UTF-16 or GBK text"
        findings.append(UNREADABLE.at(file, f"The file cannot be read: {reason}."))
        return
    yield from _lines(text)


def _lines(text: str) -> Iterator[tuple[int, str]]:
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        if stripped := line.strip():
            yield number, stripped


def is_path(text: str) -> bool:
    """Whether a text may be the path of an image: not empty, and without control characters."""
    return bool(text) and text.isprintable()


def check_counts(
    items: Items, names: tuple[str, ...], expected: Mapping[str, tuple[int, int]] | None = None
) -> Iterator[Finding]:
    """An error for each list without images, and a note for each whose numbers differ from those of papers.

    Args:
        items: what was read.
        names: of the lists.
        expected: images and classes of the parts, by name.
    """
    for name in names:
        part = items.parts.get(name, Part())
        where = part.file or items.file or str(items.root)
        found = len(part.images), len(set(part.classes))
        images, classes = (expected or {}).get(name, found)
        if not part.images:
            yield EMPTY.at(where, f"There is no usable image for {name}.")
        elif found != (images, classes):
            message = (
                f"{name}: {found[0]:,} images of {found[1]:,} classes; papers count {images:,} images of {classes:,}."
            )
            yield COUNTS.at(where, message)
