"""The format of PaddleX's ShiTuRecDataset: train.txt, gallery.txt and query.txt, a line an image."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.lists import outside, transaction
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.outside import Bounds
from paddlex_feat.data.readers.list_text import MAX_LIST_BYTES, decode_list, mixture
from paddlex_feat.data.readers.spec import ReaderSpec
from paddlex_feat.fileio import lookup

_LINE = re.compile(r"(.*\S)[ \t]+(\S+)")  # path, label
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
MAX_LINE_BYTES = 8192  # of a line that may name a file

_RULE = "Write one image a line: relative path, one space, integer label of at least 0."
_SAVE = "Save the list as UTF-8 text, in an editor or with iconv."
MISSING = FindingSpec("list-missing", "error", "a list cannot be read", _RULE)
EMPTY = FindingSpec("list-empty", "error", "a list holds no image", _RULE)
ENCODING = FindingSpec(
    "list-encoding", "error", "a list is neither UTF-8, UTF-16 nor GBK text", "Save the list as UTF-8 text."
)
GBK = FindingSpec("list-gbk", "warning", "a list is GBK text and was read as such", _SAVE)
UTF16 = FindingSpec("list-utf16", "warning", "a list, or label.txt, is UTF-16 text and was read as such", _SAVE)
BYTES = FindingSpec(
    "list-bytes",
    "warning",
    "a list is not UTF-8, and the files have names in the same encoding: the names are used byte for byte",
    "Rename the files to UTF-8, e.g. with convmv, and save the list as UTF-8 text.",
)
FORMAT = FindingSpec("line-format", "error", "a line is not a path, a space and a label", _RULE)
LABEL = FindingSpec("label-not-integer", "error", "a label is not an integer of at least 0", _RULE)
# Encodings other than UTF-8: kind of finding, and a description.
_ENCODINGS = {
    "gbk": (GBK, "GBK text"),
    "utf-16": (UTF16, "UTF-16 text"),
    "utf-32": (UTF16, "UTF-32 text"),
    "bytes": (BYTES, "not UTF-8, like the names of the files,"),
}


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """How many of the lists are in a folder."""
    return sum(transaction.list_path(folder, name).is_file() for name in names)


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> tuple[dict[str, ImageList], list[Finding]]:
    """Read the lists `names` of a folder, as `ReaderSpec.read`."""
    lists: dict[str, ImageList] = {}
    findings: list[Finding] = []
    for name in names:
        lists[name], found = read_list(root, name, refuse_outside)
        findings += found
    return lists, findings


def read_list(root: Path, name: str, refuse_outside: bool = False) -> tuple[ImageList, list[Finding]]:
    """Read `<root>/<name>.txt`.

    The last space or tab of a line separates path and label, so paths may contain spaces.

    Args:
        root: the data set's folder.
        name: of the list.
        refuse_outside: lines whose path leads out of `root`, by a link too, are errors.

    Returns:
        The records, and a finding for each line that cannot be read (`cap_per_code`).
    """
    records = ImageList(name, root)
    path = root / records.source  # as users know it
    try:
        data = transaction.read(root, name, MAX_LIST_BYTES)
    except OSError as error:
        hint = lookup.explain(path, "file")
        return records, [MISSING.at(path.name, f"The list cannot be read ({error.strerror}). {hint}".rstrip())]
    text, findings = _decode(data, path)
    if text is None:
        return records, findings
    findings += cap_per_code(_read_lines(text, records, Bounds(root) if refuse_outside else None))
    if not records and not any(f.severity == "error" for f in findings):
        findings.append(EMPTY.at(path.name, "The list holds no image."))
    return records, findings


def _decode(data: bytes, path: Path) -> tuple[str | None, list[Finding]]:
    """The text of a list file, None if its encoding is unknown, and what is to be said about the encoding."""
    if mixed := mixture(data):
        number, what, fix = mixed
        return None, [ENCODING.at(f"{path.name}:{number}", what, fix=fix)]
    try:
        text, encoding = decode_list(data)
    except UnicodeDecodeError as error:
        text, encoding = "", "unknown"
        line = f"{path.name}:{data[: error.start].count(10) + 1}"
    if encoding in ("gbk", "unknown") and _names_are_bytes(data, path.parent):
        text, encoding = os.fsdecode(data), "bytes"
    if encoding == "unknown":
        return None, [ENCODING.at(line, "The list is neither UTF-8, UTF-16 nor GBK text.")]
    if encoding == "utf-8":
        return text, []
    spec, kind = _ENCODINGS[encoding]
    return text, [spec.at(path.name, f"The list is {kind} and was read as such.")]


def _read_lines(text: str, records: ImageList, bounds: Bounds | None) -> Iterator[Finding]:
    """Fill `records`, and find what is wrong with the other lines."""
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        stripped = line.strip()
        if not stripped:
            continue
        where, fields = f"{records.source}:{number}", _LINE.fullmatch(stripped)
        if not fields or _CONTROL.search(stripped):
            yield FORMAT.at(where, f"{stripped[:80]!r} is not a path, a space and a label.")
            continue
        image, label = fields.groups()
        if not (label.isascii() and label.isdigit()):
            message = f"The label {label[:40]!r} is not an integer of at least 0."
            yield LABEL.at(where, message)
        elif len(label) > 18:
            message = f"The label {label[:40]!r} has more than 18 digits."
            yield LABEL.at(where, message)
        elif bounds is not None and (leads := bounds.problem(image)):
            spec, message = leads
            fix = f"{outside.FIX.format(records.source)} CheckDataset.outside=warn allows it."
            yield spec.at(where, f"{image} {message}", severity="error", fix=fix)
        else:
            records.paths.append(image)
            records.labels.append(int(label))
            records.lines.append(number)


def _names_are_bytes(data: bytes, root: Path) -> bool:
    """Whether the first path that is not ASCII exists under exactly these bytes, whatever their encoding."""
    first = re.search(rb"[\x80-\xff]", data)
    if first is None:
        return False
    start = max(data.rfind(end, 0, first.start()) for end in (b"\n", b"\r")) + 1
    line = data[start : start + MAX_LINE_BYTES].partition(b"\n")[0].partition(b"\r")[0]
    fields = _LINE.fullmatch(os.fsdecode(line).strip())
    try:
        return fields is not None and os.path.lexists(os.path.join(root, fields[1]))
    except ValueError:  # NUL
        return False


def is_listable_path(path: str) -> bool:
    """Whether `read_list` reads this path back as it is."""
    fields = _LINE.fullmatch(f"{path} 0")
    return bool(fields and fields[1] == path == path.strip() and not _CONTROL.search(path) and path.isprintable())


SHITU_REC = ReaderSpec(
    name="ShiTuRecDataset",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: tuple(f"{name}.txt" for name in names),
    layout="Each list has a line per image: a path relative to the list's folder, a space, an integer label.",
    findings=(MISSING, EMPTY, ENCODING, GBK, UTF16, BYTES, FORMAT, LABEL),
)
