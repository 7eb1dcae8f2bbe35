"""The format of PaddleX's ShiTuRecDataset: train.txt, gallery.txt and query.txt, a line an image.

A tab, a comma or a semicolon may also separate path and label, and labels may be names. Whole lists decide on both,
by nearly all of their lines (`_separator`, `_numbers_of_names`), so that a faulty line stays an error.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.images.formats import SUFFIXES
from paddlex_feat.data.lists import outside, transaction
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.outside import Bounds
from paddlex_feat.data.readers.list_text import MAX_LIST_BYTES, decode_list, mixture
from paddlex_feat.data.readers.plain_list import read_plain
from paddlex_feat.data.readers.spec import ReaderSpec
from paddlex_feat.fileio import lookup

_LINE = re.compile(r"(.*\S)[ \t]+(\S+)")  # path, label
_TRIED = 20  # lines whose images are looked for
_SEPARATORS = {"": "a space", "\t": "a tab", ",": "a comma", ";": "a semicolon"}
_IMAGES = tuple(SUFFIXES)
_LONGEST = max(map(len, _IMAGES))
_SAMPLED = 1000  # lines of a list by which its form is guessed
_MOST = 0.9  # share of lines or labels that decides
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
SEPARATOR = FindingSpec(
    "list-separator",
    "note",
    "path and label have a tab, a comma or a semicolon between them",
    "Nothing here; PaddleX itself needs a space.",
)
NAMES = FindingSpec(
    "label-names",
    "note",
    "labels are names; they are numbered in the order of all names",
    "Nothing here; PaddleX itself needs integers.",
)
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


class _Text(NamedTuple):
    """A list file before its labels are understood.

    Attributes:
        records: the list, still empty.
        rows: the lines of the file.
        separator: of path and label, as `_separator` gives it.
        findings: what was wrong with the file.
    """

    records: ImageList
    rows: list[str]
    separator: str
    findings: list[Finding]

    def lines(self) -> Iterator[tuple[int, str]]:
        """The lines that are not blank, with their numbers, from 1."""
        return ((number, stripped) for number, row in enumerate(self.rows, 1) if (stripped := row.strip()))

    def fields(self) -> Iterator[tuple[str, str]]:
        """Path and label of each line that has both."""
        return (fields for _, line in self.lines() if (fields := _fields(line, self.separator)))


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> tuple[dict[str, ImageList], list[Finding]]:
    """Read the lists `names` of a folder, as `ReaderSpec.read`."""
    plain = {} if refuse_outside else {name: _read_plain(root, name) for name in names}
    if plain and all(plain.values()):
        named = _class_names(root)
        for records in plain.values():
            assert records is not None
            records.names = named
        return {name: records for name, records in plain.items() if records}, []
    plain.clear()
    texts = _with_one_separator({name: _read_text(root, name) for name in names})
    numbers = _numbers_of_names(root, texts)
    named = _class_names(root) if numbers is None else {}
    findings: list[Finding] = []
    for text in texts.values():
        findings += _fill(text, numbers, refuse_outside)
        text.records.names = text.records.names or named
    return {name: text.records for name, text in texts.items()}, findings


def _read_plain(root: Path, name: str) -> ImageList | None:
    """A list that can be read the quick way; None for any other, and for one that cannot be read."""
    try:
        data = transaction.read(root, name, MAX_LIST_BYTES)
        first = data[:MAX_LINE_BYTES].decode(errors="ignore").splitlines()[:_TRIED]
        found = None if _before_numbered_names(first, root) else read_plain(data)
    except OSError:
        return None
    return ImageList(name, root, *found) if found else None


def _class_names(root: Path) -> dict[int, str]:
    """The names in label.txt, a line for each label from 0; empty where there is none that can be read."""
    try:
        text, _ = decode_list(transaction.read(root, transaction.NAMES, MAX_LIST_BYTES))
    except (OSError, UnicodeDecodeError):
        return {}
    return {label: name for label, line in enumerate(text.rstrip().splitlines()) if (name := line.strip())}


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
    lists, findings = _read(root, (name,), refuse_outside)
    return lists[name], findings


def _read_text(root: Path, name: str) -> _Text:
    """Read the lines of `<root>/<name>.txt`, none with a finding where that is not possible."""
    records = ImageList(name, root)
    path = root / records.source  # as users know it
    try:
        data = transaction.read(root, name, MAX_LIST_BYTES)
    except OSError as error:
        hint = lookup.explain(path, "file")
        message = f"The list cannot be read ({error.strerror}). {hint}".rstrip()
        return _Text(records, [], "", [MISSING.at(path.name, message)])
    text, findings = _decode(data, path)
    rows = (text or "").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    filled = [row for row in rows if row.strip()]
    if not filled and not any(f.severity == "error" for f in findings):
        findings.append(EMPTY.at(path.name, "The list holds no image."))
    return _Text(records, rows, _separator(filled) or _before_numbered_names(filled, root), findings)


def _fields(line: str, separator: str) -> tuple[str, str] | None:
    """Path and label of a line; None for a line that has not both."""
    if not separator:
        match = _LINE.fullmatch(line)
        return (match[1], match[2]) if match else None
    path, _, label = map(str.strip, line.rpartition(separator))
    return (path, label) if path and label else None


def _separator(lines: list[str]) -> str:
    """What is between path and label in a list: "" for spaces, else a tab, a comma or a semicolon.

    Another separator is used only where hardly any line has an integer after a space, and where it gives nearly all
    lines the path of an image, by its suffix, or an integer. Of several the one that does so for most lines is used.
    """
    integers, few = 0, (1 - _MOST) * len(lines)
    for line in lines:
        fields = _fields(line.strip(), "")
        integers += fields is not None and _is_integer(fields[1])
        if integers > few:
            return ""
    sample = _sample(lines)
    fitting = {separator: sum(_fits(line.strip(), separator) for line in sample) for separator in _SEPARATORS}
    best = max(fitting, key=fitting.__getitem__)
    return best if fitting[best] > _MOST * len(sample) else ""


def _before_numbered_names(lines: list[str], root: Path) -> str:
    """The separator of lines such as `a.jpg<TAB>class 1`, if images exist so, and none with the space as separator."""
    sample = _sample(lines)[:_TRIED]
    for separator in filter(None, _SEPARATORS):
        fields = [found for line in sample if (found := _fields(line.strip(), separator)) and _is_image(found[0])]
        spaced = [found[0] for line in sample if (found := _fields(line.strip(), ""))]
        if sample and len(fields) == len(sample) and not all(_is_integer(label) for _, label in fields):
            exist = [any((root / path).is_file() for path in paths) for paths in ((path for path, _ in fields), spaced)]
            if exist == [True, False]:
                return separator
    return ""


def _with_one_separator(texts: dict[str, _Text]) -> dict[str, _Text]:
    """The lists, of which one whose lines tell of no separator has that of the others if it fits most of its lines."""
    others = {text.separator for text in texts.values()} - {""}
    if len(others) != 1:
        return texts
    separator, found = others.pop(), {}
    for name, text in texts.items():
        sample = _sample([row for row in text.rows if row.strip()])
        fits = sum(_fits(line.strip(), separator) for line in sample)
        spaced = sum((fields := _fields(line.strip(), "")) is not None and _is_integer(fields[1]) for line in sample)
        found[name] = text._replace(separator=separator) if 2 * fits > len(sample) > 2 * spaced else text
    return found


def _sample(lines: list[str]) -> list[str]:
    """At most about _SAMPLED lines, from all of a list."""
    return lines[:: max(1, len(lines) // _SAMPLED)]


def _fits(line: str, separator: str) -> bool:
    """Whether a separator divides a line into the path of an image and a label, or any path and an integer."""
    fields = _fields(line, separator)
    if fields is None:
        return False
    return _is_image(fields[0]) or _is_integer(fields[1])


def _is_image(path: str) -> bool:
    return path[-_LONGEST:].lower().endswith(_IMAGES)


def _is_integer(label: str) -> bool:
    return label.isascii() and label.isdigit()


def _is_name(label: str) -> bool:
    """Whether a label is a name: text, neither a file nor a number such as -1, 2.5 or ², which may be a mistake."""
    if not label.isprintable() or label.isnumeric() or _is_image(label):
        return False
    try:
        float(label)
    except ValueError:
        return True
    return False


def _numbers_of_names(root: Path, texts: dict[str, _Text]) -> dict[str, int] | None:
    """The number of each label of the data set if its labels are names, else None: by label.txt, if it has all names.

    They are names if nearly all labels of its lists are, after the path of an image; whichever lists are asked for.
    """
    if not any(_has_names(text) for text in texts.values()):
        return None
    missing = [name for name in transaction.LISTS if name not in texts]
    others = [_read_text(root, name) for name in missing if transaction.list_path(root, name).is_file()]
    labels, not_named = Counter[str](), 0
    for text in (*texts.values(), *others):
        for path, label in text.fields():
            labels[label] += 1
            not_named += not _is_image(path)
    not_named += sum(count for label, count in labels.items() if not _is_name(label))
    if not_named >= (1 - _MOST) * labels.total():
        return None
    known = {name: number for number, name in _class_names(root).items()}
    if labels.keys() <= known.keys():
        return known
    return {name: number for number, name in enumerate(sorted(filter(str.isprintable, labels)))}


def _has_names(text: _Text) -> bool:
    """Whether a sample of a list has labels that are names, so that all of it has to be looked at."""
    found = [_fields(row.strip(), text.separator) for row in _sample(text.rows)]
    return any(_is_image(fields[0]) and _is_name(fields[1]) for fields in found if fields)


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


def _fill(text: _Text, numbers: dict[str, int] | None, refuse_outside: bool) -> list[Finding]:
    """Fill the records of a list; returns what is wrong with it."""
    records, findings = text.records, text.findings
    if text.separator:
        message = f"{_SEPARATORS[text.separator].capitalize()} separates path and label."
        findings.append(SEPARATOR.at(records.source, message))
    bounds = Bounds(records.root) if refuse_outside else None
    findings += cap_per_code(_read_lines(text, numbers, bounds))
    text.rows.clear()  # memory for the next list
    if numbers is not None and records:
        records.names = {number: name for name, number in numbers.items()}
        message = f"The labels are names, of {len(numbers)} classes in all lists; they are numbered in their order."
        findings.append(NAMES.at(records.source, message))
    return findings


def _read_lines(text: _Text, numbers: dict[str, int] | None, bounds: Bounds | None) -> Iterator[Finding]:
    """Fill `records`, and find what is wrong with the other lines."""
    records, paths, labels, lines = text.records, list[str](), list[int](), list[int]()
    records.paths, records.labels, records.lines = paths, labels, lines
    for number, line in text.lines():
        where, fields = f"{records.source}:{number}", _fields(line, text.separator)
        if not fields or _CONTROL.search(line):
            between = _SEPARATORS[text.separator]
            yield FORMAT.at(where, f"{line[:80]!r} is not a path, {between} and a label.")
            continue
        image, label = fields
        if numbers is not None and label not in numbers:
            yield LABEL.at(where, f"The label {label[:40]!r} is not text that can be printed.")
        elif numbers is None and not _is_integer(label):
            message = f"The label {label[:40]!r} is not an integer of at least 0."
            yield LABEL.at(where, message)
        elif numbers is None and len(label) > 18:
            message = f"The label {label[:40]!r} has more than 18 digits."
            yield LABEL.at(where, message)
        elif bounds is not None and (leads := bounds.problem(image)):
            spec, message = leads
            fix = f"{outside.FIX.format(records.source)} CheckDataset.outside=warn allows it."
            yield spec.at(where, f"{image} {message}", severity="error", fix=fix)
        else:
            paths.append(image)
            labels.append(int(label) if numbers is None else numbers[label])
            lines.append(number)


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
    findings=(MISSING, EMPTY, ENCODING, GBK, UTF16, BYTES, FORMAT, LABEL, SEPARATOR, NAMES),
)
