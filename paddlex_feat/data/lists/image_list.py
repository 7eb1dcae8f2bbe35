"""List files to records that remember where they stand."""

from __future__ import annotations

import codecs
import logging
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from paddlex_feat.data.findings import Finding, cap_per_code
from paddlex_feat.data.images.folders import Walk
from paddlex_feat.data.lists import transaction
from paddlex_feat.data.lists.outside import FIX, Bounds
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.errors import DatasetError
from paddlex_feat.fileio import lookup
from paddlex_feat.fileio.reading import decode_text, is_utf16

log = logging.getLogger(__name__)
RULE = "Write one image a line: relative path, one space, integer label of at least 0."
_LINE = re.compile(r"(.*\S)[ \t]+(\S+)")  # path, label
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Encodings other than UTF-8: code of the warning, and a description.
_ENCODINGS = {
    "gbk": ("list-gbk", "GBK text"),
    "utf-16": ("list-utf16", "UTF-16 text"),
    "utf-32": ("list-utf16", "UTF-32 text"),
    "bytes": ("list-bytes", "not UTF-8, like the names of the files,"),
}
_LINE_OF_BYTES = re.compile(rb"[./ \t][^\n]*\n")
_NOT_POWERSHELL = "; in PowerShell, append with Add-Content -Encoding UTF8 instead of >>."
MAX_LIST_BYTES = 2**30  # bytes of a list file: ten million lines, which take some 5 GiB of memory
MAX_LINE_BYTES = 8192  # bytes of a line that may name a file
SEARCH_DEPTH = 4  # how far below Global.dataset_dir the list files may lie


@dataclass
class ImageList:
    """The records of one list file, as columns: relative path, label, line number."""

    name: str
    root: Path
    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    _files: list[str] = field(default_factory=list, repr=False)

    def __len__(self) -> int:
        return len(self.paths)

    def where(self, index: int) -> str:
        """file:line of a record."""
        return f"{self.name}.txt:{self.lines[index]}"

    def files(self) -> list[str]:
        """Every record's image file, as one path."""
        if len(self._files) != len(self.paths):
            self._files = [_join(self.root, path) for path in self.paths]
        return self._files


def _join(root: Path, path: str) -> str:
    """One path, and one only, for each file: `a.jpg`, `./a.jpg` and `b/../a.jpg` are the same."""
    joined = os.path.join(root, path)
    return os.path.normpath(joined) if "./" in path or "//" in path else joined


def find_root(dataset_dir: str, names: tuple[str, ...] = LISTS) -> Path:
    """The folder with the list files `names`, at or under `dataset_dir`.

    Raises DatasetError if there is no such folder, or several.
    """
    top = Path(dataset_dir)
    if not os.path.isdir(dataset_dir):
        raise DatasetError(
            lookup.problem("The data set folder", dataset_dir, "folder"),
            where=f"Global.dataset_dir={dataset_dir}",
            fix=f"Give the folder that holds {_files(names)}.",
        )
    if _lists_in(top, names) == len(names):
        return top
    walk = Walk()
    found = [folder for folder in _folders(top, SEARCH_DEPTH, walk) if _lists_in(folder, names) == len(names)]
    walk.log(f"Search for {_files(names)} below {top}")
    if len(found) == 1:
        return found[0]
    if not found and _lists_in(top, names):
        return top
    if not found:
        hints = [lookup.explain(top / f"{name}.txt", "file") for name in names]
        if top.name not in ("", "..") and _lists_in(top.parent, names):
            hints = [f"There are lists one folder up: give {top.parent}."]
        raise DatasetError(
            f"No folder with {_files(names)}. {next(filter(None, hints), '')}".rstrip(),
            where=f"{top} and {SEARCH_DEPTH} levels of folders below",
            fix="Each list has a line per image: a path relative to the list's folder, a space, an integer label.",
        )
    raise DatasetError(
        f"{len(found)} folders hold list files: {', '.join(map(str, found[:10]))}.",
        where=f"Global.dataset_dir={dataset_dir}",
        fix="Set Global.dataset_dir to one of them.",
    )


def _files(names: tuple[str, ...]) -> str:
    *others, last = (f"{name}.txt" for name in names)
    return f"{', '.join(others)} and {last}" if others else last


def _lists_in(folder: Path, names: tuple[str, ...]) -> int:
    return sum(transaction.list_path(folder, name).is_file() for name in names)


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
        log.warning("Not looked into: %s (%s)", folder, error.strerror)
        return []


def decode_list(data: bytes) -> tuple[str, str]:
    """The text of a list file and its encoding: UTF-8, UTF-16 (`reading.decode_text`), else GBK.

    Raises UnicodeDecodeError, as of UTF-8, where it is none of them or a mixture (`mixture`).
    """
    if mixed := mixture(data):
        raise UnicodeDecodeError("utf-8", data, 0, 1, mixed[1])
    try:
        return decode_text(data)
    except UnicodeDecodeError as error:
        try:
            return data.decode("gbk"), "gbk"
        except UnicodeDecodeError:
            raise error from None


def mixture(data: bytes) -> tuple[int, str, str] | None:
    """Find where a list changes between UTF-16 and an encoding of bytes: (line, what is wrong, advice), else None.

    PowerShell's >> appends UTF-16 to a file of any encoding; other shells append bytes to a file of UTF-16.
    """
    nul = data.find(0)
    if nul < 0:
        return None
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        end = b"\n\0" if data.startswith(codecs.BOM_UTF16_LE) else b"\0\n"
        start = data.rfind(end) + 2
        # Names of UTF-16 without a NUL are possible, but not with a separator and the end of a line.
        if start < 2 or 0 in data[start:] or not _LINE_OF_BYTES.search(data, start):
            return None
        number = data.count(end, 0, start) + 1
        what = f"The list is UTF-16 before line {number}, and another encoding from there on."
        return number, what, f"Write the lines before line {number} again as UTF-8{_NOT_POWERSHELL}"
    start = nul - 1  # the first ASCII character of little-endian text
    wide = any(is_utf16(data[at : at + 4096]) for at in (start, nul) if at > 0)
    if not (wide and _LINE_OF_BYTES.search(data, 0, start)):
        return None
    number = data.count(b"\n", 0, start) + 1
    what = f"The list is UTF-16 from line {number} on, and another encoding before."
    return number, what, f"Write line {number} and those after it again as UTF-8{_NOT_POWERSHELL}"


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
    """Would `read_list` read this path back as it is?"""
    fields = _LINE.fullmatch(f"{path} 0")
    return bool(fields and fields[1] == path == path.strip() and not _CONTROL.search(path) and path.isprintable())


def read_list(root: Path, name: str, refuse_outside: bool = False) -> tuple[ImageList, list[Finding]]:
    """Read `<root>/<name>.txt`; lines that cannot be read become findings (`cap_per_code`), not records.

    The last space or tab of a line separates path and label, so paths may hold spaces. With `refuse_outside`, lines
    whose path leads out of `root`, by a link too, are among the findings.
    """
    records, findings = ImageList(name, root), []
    path = root / f"{name}.txt"  # as users know it

    def problem(code: str, where: str, message: str, severity: str = "error") -> None:
        findings.append(Finding(code, severity, where, message, RULE))

    try:
        data = transaction.read(root, name, MAX_LIST_BYTES)
    except OSError as error:
        hint = lookup.explain(path, "file")
        problem("list-missing", path.name, f"The list cannot be read ({error.strerror}). {hint}".rstrip())
        return records, findings
    if mixed := mixture(data):
        number, what, fix = mixed
        findings.append(Finding("list-encoding", "error", f"{path.name}:{number}", what, fix))
        return records, findings
    try:
        text, encoding = decode_list(data)
    except UnicodeDecodeError as error:
        text, encoding = "", "unknown"
        line = f"{path.name}:{data[: error.start].count(10) + 1}"
    if encoding in ("gbk", "unknown") and _names_are_bytes(data, root):
        text, encoding = os.fsdecode(data), "bytes"
    if encoding == "unknown":
        message = "The list is neither UTF-8, UTF-16 nor GBK text."
        findings.append(Finding("list-encoding", "error", line, message, "Save the list as UTF-8 text."))
        return records, findings
    if encoding != "utf-8":
        code, kind = _ENCODINGS[encoding]
        fix = "Save the list as UTF-8 text, in an editor or with iconv."
        if encoding == "bytes":
            fix = "Rename the files to UTF-8, e.g. with convmv, and save the list as UTF-8 text."
        findings.append(Finding(code, "warning", path.name, f"The list is {kind} and was read as such.", fix))
    findings += cap_per_code(_read_lines(text, records, Bounds(root) if refuse_outside else None))
    if not records and not any(f.severity == "error" for f in findings):
        problem("list-empty", path.name, "The list holds no image.")
    return records, findings


def _read_lines(text: str, records: ImageList, bounds: Bounds | None) -> Iterator[Finding]:
    """Fill `records`; what is wrong with the other lines."""
    for number, line in enumerate(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"), 1):
        stripped = line.strip()
        if not stripped:
            continue
        where, fields = f"{records.name}.txt:{number}", _LINE.fullmatch(stripped)
        if not fields or _CONTROL.search(stripped):
            yield Finding("line-format", "error", where, f"{stripped[:80]!r} is not a path, a space and a label.", RULE)
            continue
        image, label = fields.groups()
        if not (label.isascii() and label.isdigit()):
            message = f"The label {label[:40]!r} is not an integer of at least 0."
            yield Finding("label-not-integer", "error", where, message, RULE)
        elif len(label) > 18:
            message = f"The label {label[:40]!r} has more than 18 digits."
            yield Finding("label-not-integer", "error", where, message, RULE)
        elif bounds is not None and (leads := bounds.problem(image)):
            fix = f"{FIX.format(records.name)} CheckDataset.outside=warn allows it."
            yield Finding(leads[0], "error", where, f"{image} {leads[1]}", fix)
        else:
            records.paths.append(image)
            records.labels.append(int(label))
            records.lines.append(number)


def require_lists(
    dataset_dir: str, names: tuple[str, ...] = LISTS, refuse_outside: bool = False
) -> dict[str, ImageList]:
    """The lists that a mode needs. Raises DatasetError with the first errors if any line is bad.

    refuse_outside: as for `read_list`.
    """
    root = find_root(dataset_dir, names)
    lists: dict[str, ImageList] = {}
    errors: list[Finding] = []
    for name in names:
        lists[name], findings = read_list(root, name, refuse_outside)
        errors += [f for f in findings if f.severity == "error"]
    if errors:
        shown = "\n    ".join(f"{f.where}: {f.message}" for f in errors[:10])
        total = sum(f.count for f in errors)
        more = f"\n    … and {total - 10} more" if len(errors) > 10 else ""
        raise DatasetError(
            f"{total} errors in the list files:\n    {shown}{more}",
            where=str(root),
            fix="Correct those lines; Global.mode=check_dataset shows everything that is wrong.",
        )
    return lists
