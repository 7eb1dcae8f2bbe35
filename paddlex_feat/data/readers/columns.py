"""The columns of a table of images, and its rows, whatever file they come from."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from paddlex_feat.data.findings import Finding, FindingSpec
from paddlex_feat.data.images.source import Box, ImageSource
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.parts import GALLERY, QUERY, TRAIN, part_of
from paddlex_feat.data.readers.remote import image_at
from paddlex_feat.fileio.addresses import is_url

CONVERTED_HEAD = ("path", "label", "split", "is_query", "is_gallery", "x1", "y1", "x2", "y2")
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
_SIZED_COLUMNS = (("x", "y", "w", "h"), ("x", "y", "width", "height"))
_BOX = ("box", "bbox", "boxes")  # of four numbers in one column
_DECIDING = 100_000  # rows whose boxes decide what the four numbers are
_FEW = 0.2  # of the boxes, which may be wrong; of boxes by x, y, width, height more are no corners, as a rule
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_RULE = "Give each line a path, relative to the table's folder, and a class."
NO_PATH = FindingSpec("table-path", "error", "a line of a table has no usable path", _RULE)
NO_CLASS = FindingSpec("table-class", "error", "a line of a table has no usable class", _RULE)
UNLABELLED = FindingSpec(
    "table-unlabelled",
    "warning",
    "an image has the label -1, as those of test sets whose labels are kept back; it is left out",
    "Nothing, or give its class.",
)
URL = FindingSpec(
    "table-url", "error", "a path of a table is a URL, but not of http(s)", "Download the images, and give their paths."
)
BAD_BOX = FindingSpec(
    "table-box", "error", "a box of a table is not four numbers x1 < x2 and y1 < y2", "Correct the box, in pixels."
)
NO_PART = FindingSpec(
    "table-split",
    "warning",
    "a line of a table has an unknown part; it is left out",
    "Write train, gallery, query, validation or test.",
)
HEADER = FindingSpec(
    "table-header-again", "warning", "a line of a table repeats its header; it is left out", "Take the line out."
)
SIZED = FindingSpec(
    "table-box-sizes",
    "note",
    "the four numbers of a box in one column are taken for x, y, width, height, as many are no corners",
    "Nothing; for corners write columns x1, y1, x2, y2.",
)
EMPTY = FindingSpec("table-empty", "error", "a table holds no usable image", _RULE)
FINDINGS = (NO_PATH, NO_CLASS, UNLABELLED, URL, BAD_BOX, SIZED, HEADER, NO_PART, EMPTY)  # of a row, and of none


@dataclass(frozen=True)
class Columns:
    """Which column of a table has what: names as in its header, None for none."""

    path: str
    label: str
    split: str | None
    is_query: str | None
    is_gallery: str | None
    box: tuple[str, ...] = ()
    sized: bool = False  # the box's last two numbers are its width and height

    @classmethod
    def of(cls, header: Iterable[str], path: str | None = None, label: str | None = None) -> Columns | None:
        """Find the columns; None if there is none of paths or none of classes.

        Args:
            header: names of the columns.
            path: the one of images, where it is known otherwise.
            label: the one of classes where no name says it.
        """
        by_name = {re.sub(r"[\s_]", "", str(name)).lower(): name for name in reversed(list(header))}

        def first(names: Iterable[str]) -> str | None:
            return next((by_name[name] for name in names if name in by_name), None)

        path, label = first(_PATH) if path is None else path, first(_CLASS) or label
        if path is None or label is None:
            return None
        whole = (names for names in (*_BOX_COLUMNS, *_SIZED_COLUMNS) if all(name in by_name for name in names))
        four, one = next(whole, None), first(_BOX)
        box = tuple(by_name[name] for name in four) if four else (one,) if one else ()
        return cls(path, label, first(_SPLIT), first((_IS_QUERY,)), first((_IS_GALLERY,)), box, four in _SIZED_COLUMNS)

    def used(self) -> list[str]:
        """The names of the columns that there are."""
        names = (self.path, self.label, self.split, self.is_query, self.is_gallery, *self.box)
        return [name for name in names if name is not None]

    def describe(self) -> str:
        """The columns that are used, in words."""
        return ", ".join(map(str, self.used()))


class Rows:
    """Takes the rows of one table, and adds their images to the parts of a data set.

    Args:
        table: name of the table, for findings; below a folder, as in "train/metadata.csv", paths begin there.
        columns: of the table.
        header: names of the columns, in the order of a row's values.
        items: the data set; told whether gallery and query have images in common.
        found: the parts, by name.
        part: of all rows; None: each row says it.
        prefix: before each path, for tables that name images in a folder without it.
    """

    def __init__(
        self,
        table: str,
        columns: Columns,
        header: Sequence[str],
        items: Items,
        found: dict[str, Part],
        part: str | None = None,
        prefix: str = "",
    ):
        self._table, self._items, self._found, self._part = table, items, found, part
        self._prefix = table[: table.rfind("/") + 1] + prefix
        places = {name: place for place, name in reversed(list(enumerate(header)))}
        self._path, self._label = places[columns.path], places[columns.label]
        self._split, self._is_query, self._is_gallery = (
            None if name is None else places[name] for name in (columns.split, columns.is_query, columns.is_gallery)
        )
        self._box, self._sized = [places[name] for name in columns.box], columns.sized
        self._head = (columns.path, columns.label)
        converted = tuple(header) == CONVERTED_HEAD  # then every class is meant as it stands
        self._class_of: Callable[[str], str] = str if converted else _class_of
        self._unlabelled = () if converted else ("-1",)
        self._last = max(place for place in (self._path, self._label, self._split, *self._box) if place is not None)

    def decide_boxes(self, rows: Iterable[Sequence[str]]) -> Finding | None:
        """Decide whether boxes in one column are corners, or x, y, width, height: many of these are no corners."""
        if len(self._box) != 1:
            return None
        place, boxes, others, example = self._box[0], 0, 0, ""
        for row in islice(rows, _DECIDING):
            text = row[place].strip() if place < len(row) else ""
            boxes += bool(text)
            if text and _box([text], False) is None and _box([text], True) is not None:
                others, example = others + 1, text
        if others <= _FEW * boxes:
            return None
        self._sized = True
        return SIZED.at(self._table, f"The boxes, as {example[:80]!r}, are taken for x, y, width and height.")

    def add(self, row: Sequence[str], line: int, image: ImageSource | None = None) -> Finding | None:
        """Add a row's image, or say what is wrong with it.

        Args:
            row: its values, as text.
            line: its number, from 1.
            image: the image, where the table holds it; None: the row has its path.
        """
        if len(row) <= self._last:
            message = f"The line has {len(row)} values, fewer than columns are used."
            return NO_PATH.at(f"{self._table}:{line}", message)
        name = self._class_of(row[self._label].strip())
        if (row[self._path], name) == self._head:
            return HEADER.at(f"{self._table}:{line}", "The line is the header.")
        path = image or self._named(row[self._path].strip(), line)
        if isinstance(path, Finding):
            return path
        if name in self._unlabelled:
            return UNLABELLED.at(f"{self._table}:{line}", f"{path} has the label -1, which stands for none.")
        if not name or not name.isprintable():
            message = f"The class of {path} is {name[:80]!r}." if name else f"{path} has no class."
            return NO_CLASS.at(f"{self._table}:{line}", message)
        if self._box and (values := [row[i].strip() for i in self._box]) and any(values):
            box = _box(values, self._sized)
            if box is None:
                return BAD_BOX.at(f"{self._table}:{line}", f"{path}: {' '.join(values)[:80]!r} is not a box.")
            path = self._boxed(path, box)
        parts = (self._part,) if self._part else self._parts(row)
        if not parts:
            message = f"{path}: the part {row[self._split or 0][:40]!r} is not known."
            return NO_PART.at(f"{self._table}:{line}", message)
        for part in parts:
            if part not in self._found:
                self._found[part] = Part()
            self._found[part].add(path, name, line if self._items.file else None)
        if len(parts) > 1:
            self._items.leave_one_out = True
        return None

    def _named(self, path: str, line: int) -> str | Finding:
        """The image of a path or address, or what is wrong with it."""
        if not path or not path.isprintable():
            return NO_PATH.at(f"{self._table}:{line}", f"The path is {path[:80]!r}.")
        if is_url(path):
            return image_at(path)
        if _URL.match(path):
            return URL.at(f"{self._table}:{line}", f"{path[:200]} is a URL.")
        if path[0] in "/\\":
            return path
        path = self._prefix + path
        # A backslash may belong to a name, but in most tables it is that of Windows.
        return path if "\\" not in path or (self._items.root / path).exists() else path.replace("\\", "/")

    def _boxed(self, image: str, box: Box) -> ImageSource:
        if isinstance(image, ImageSource):
            return ImageSource(f"{image}[{box}]", image.file, image.start, image.length, box)
        return ImageSource(f"{image}[{box}]", str(self._items.root / image), box=box)

    def _parts(self, row: Sequence[str]) -> tuple[str, ...]:
        """The parts of a row, by its columns; those of no such column train. Empty for an unknown part."""
        own = TRAIN if self._split is None else part_of(row[self._split])
        flags = ((self._is_query, QUERY), (self._is_gallery, GALLERY))
        if (self._is_query, self._is_gallery) != (None, None) and (own != TRAIN or self._split is None):
            flagged = tuple(name for column, name in flags if column is not None and _true(row, column))
            return flagged or ((TRAIN,) if self._split is None else ())
        return (own,) if own else ()


def _class_of(text: str) -> str:
    """The class that a value names: of 3.0, as programs write integers beside empty values, 3."""
    return text[:-2] if text.endswith(".0") and text[:-2].removeprefix("-").isdecimal() else text


def _true(row: Sequence[str], column: int) -> bool:
    return column < len(row) and row[column].strip().lower() in ("1", "1.0", "true", "yes", "t")


def _box(values: list[str], sized: bool) -> Box | None:
    """A box of four texts, or of one that holds four numbers; None if it is none."""
    if len(values) == 1:
        values = re.split(r"[\s,;]+", values[0].strip("[]() "))
    try:
        x1, y1, x2, y2 = map(float, values)
    except ValueError:
        return None
    if sized:
        x2, y2 = x1 + x2, y1 + y2
    return Box(x1, y1, x2, y2) if -1e9 < x1 < x2 < 1e9 and -1e9 < y1 < y2 < 1e9 else None
