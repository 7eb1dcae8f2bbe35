"""What the readers of boxes share: a box of a picture becomes an item of the class that it is marked with."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from paddlex_feat.data.findings import Finding, FindingSpec, cap_per_code
from paddlex_feat.data.images.folders import Walk, files_below, in_words
from paddlex_feat.data.images.formats import SUFFIXES
from paddlex_feat.data.images.headers import picture_size
from paddlex_feat.data.images.source import Box, ImageSource
from paddlex_feat.data.readers.items import Items, Part
from paddlex_feat.data.readers.parts import TRAIN, assign, part_in
from paddlex_feat.data.readers.spec import Reading
from paddlex_feat.runtime.collector import without_collector

MAX_ANNOTATION_BYTES = 2**27  # of a file that is read whole; LabelMe's may hold its picture
_MOST = 1e9  # pixels of a corner; larger values are errors
_TOLERANCE = 0.5  # px outside of the picture that are rounding and are cut off without a finding
_CORRECT = "Correct the annotation, or take it out."
UNREADABLE = FindingSpec(
    "annotations-unreadable", "error", "a file of annotations cannot be read", "Replace the file, or take it out."
)
UNUSABLE = FindingSpec("annotation-unusable", "error", "an annotation is not a box of a class", _CORRECT)
NO_IMAGE = FindingSpec(
    "annotated-image-missing",
    "error",
    "the image of annotations is not found; they are left out",
    "Add the image, or take its annotations out.",
)
NO_AREA = FindingSpec(
    "box-without-area", "warning", "a box has no area within its picture; it is left out", "Correct the box."
)
CLIPPED = FindingSpec(
    "box-clipped",
    "warning",
    "a part of a box is outside its picture, whose size the annotations name; the part within is used",
    "Correct the box; if many are so, the boxes belong to pictures of another size.",
)
LEFT_OUT = FindingSpec(
    "annotations-left-out", "note", "annotations and files that give no box, counted", "Nothing, if it is intended."
)
OTHER_PART = FindingSpec(
    "annotations-of-no-part",
    "warning",
    "beside annotations of train, val or test there are others, whose name says none of these; they are left out",
    "Nothing, if they do not belong to the data set; else name them train, val or test.",
)
NO_PART = FindingSpec(
    "annotated-part-missing",
    "warning",
    "a folder for evaluation that a file of annotations names does not exist; another one does",
    "Nothing, if it is not needed; else add the folder.",
)
EMPTY = FindingSpec(
    "boxes-none", "error", "a data set of boxes has no usable box", "Correct what the other findings name."
)
FINDINGS = (UNREADABLE, UNUSABLE, NO_IMAGE, NO_AREA, CLIPPED, LEFT_OUT, OTHER_PART, NO_PART, EMPTY)
Size = tuple[float, float]


class Boxes:
    """The boxes of a data set, as a reader finds them.

    Attributes:
        root: the data set's folder.
        left_out: what is not used, counted by reason.
    """

    def __init__(self, root: Path):
        self.root = root
        self.left_out: Counter[str] = Counter()
        self._folder = os.path.join(root, "")
        self._found: dict[str, Part] = {}
        self._files: dict[str, str] = {}  # path of each picture, one text for all its boxes

    def add(
        self, image: str, corners: Sequence[float], name: str, where: str, part: str | None, size: Size | None = None
    ) -> Finding | None:
        """Add a box.

        Args:
            image: path of the picture, relative to the root.
            corners: x1, y1, x2, y2 in pixels, numbers of any value.
            name: of its class.
            where: the annotation, for findings.
            part: as `parts.part_of` gives it; None: the data set is not divided.
            size: (width, height) of the picture, to which the box is cut; None: it is not known.

        Returns:
            What is wrong with the box, if anything.
        """
        x1, y1, x2, y2 = corners
        if not (-_MOST < x1 < _MOST and -_MOST < y1 < _MOST and -_MOST < x2 < _MOST and -_MOST < y2 < _MOST):
            return UNUSABLE.at(where, f"{image}: the box {_in_words(corners)} is not four numbers of pixels.")
        problem = None
        if size is not None and not (x1 >= 0 and y1 >= 0 and x2 <= size[0] and y2 <= size[1]):
            if min(x1, y1) < -_TOLERANCE or x2 > size[0] + _TOLERANCE or y2 > size[1] + _TOLERANCE:
                message = f"{image}: the box {_in_words(corners)} leaves the picture, {size[0]:g} x {size[1]:g}."
                problem = CLIPPED.at(where, message)
            x1, y1, x2, y2 = max(x1, 0.0), max(y1, 0.0), min(x2, size[0]), min(y2, size[1])
        if not (x1 < x2 and y1 < y2):
            return NO_AREA.at(where, f"{image}: the box {_in_words(corners)} has no area within the picture.")
        box = Box(x1, y1, x2, y2)
        found = self._found.setdefault(part or TRAIN, Part())
        file = self._files.get(image) or self._files.setdefault(image, self._folder + image)
        found.add(ImageSource(f"{image}[{box}]", file, box=box), name)
        return problem

    def reading(
        self, findings: Iterable[Finding], names: tuple[str, ...], refuse_outside: bool, understood: str
    ) -> Reading:
        """Run the reader's generator of findings, which adds the boxes, and make lists of them."""
        with without_collector():
            kept = cap_per_code(findings)
        items = Items(self.root)
        told = assign(items, self._found)
        if not items.parts:
            kept.append(EMPTY.at(str(self.root), "There is no usable box."))
        if refuse_outside:
            kept += cap_per_code(items.refuse_outside())
        if self.left_out:
            kept.append(LEFT_OUT.at(str(self.root), f"Left out: {in_words(self.left_out)}."))
        return Reading(items.lists(names), kept, f"{understood}; {told}")


class Pictures:
    """The image files below a folder, to find those that annotations name.

    Args:
        root: the folder.
    """

    def __init__(self, root: Path):
        self._root, self._walk = root, Walk()
        skipped = len(os.path.join(root, ""))
        files = (file[skipped:].replace(os.sep, "/") for file in files_below(self._walk, str(root)))
        self.files = {file for file in files if is_picture(file)}
        self._by_name: dict[str, str | None] = {}  # None: several have the name
        for file in self.files:
            name = file.rpartition("/")[2]
            self._by_name[name] = None if name in self._by_name else file
        self._sizes: dict[str, Size | None] = {}
        self._expected: dict[str, str] = {}  # a path that annotations name, by the file's name
        self._repeated: set[str] = set()  # names of files in which several such paths end
        self._taken: dict[str, str] = {}  # the path that annotations name, by the image that was found for it

    def expect(self, named: Iterable[str]) -> None:
        """Tell all paths that annotations name: a name in which several of them end is not looked for alone."""
        for path in named:
            name = path.replace("\\", "/").rpartition("/")[2]
            if self._expected.setdefault(name, path) != path:
                self._repeated.add(name)

    def find(self, named: str, folders: Iterable[str] = ("",), part: str | None = None) -> str | None:
        """The image that annotations name, relative to the root; None if there is none, or any of several.

        The path is taken from each of the folders, then without its first components, and last the name alone is looked
        for anywhere: annotations are often made on another machine. An image is found by its name for one path alone.

        Args:
            named: path, with slashes or backslashes.
            folders: relative to the root, "" for the root itself.
            part: of the annotations; an image found by its name alone must not be in a folder of another.
        """
        named = named.strip().replace("\\", "/")
        words = [word for word in named.split("/") if word not in ("", ".", "..")]
        folders = tuple(folders)
        for start in range(len(words)):
            end = "/".join(words[start:])
            for folder in folders:
                path = f"{folder}/{end}" if folder else end
                if path in self.files and (start + 1 < len(words) or self._is_only(words[-1], path, named, start)):
                    self._taken.setdefault(path, named)
                    return path
        anywhere = self._by_name.get(words[-1]) if words else None
        if anywhere and part and {part_in(folder) for folder in anywhere.split("/")[:-1]} - {None, part}:
            return None
        return anywhere if anywhere and self._is_only(words[-1], anywhere, named, len(words)) else None

    def _is_only(self, name: str, image: str, named: str, dropped: int) -> bool:
        """Whether no other path that annotations name leads to an image, of whose path the folders were dropped."""
        return not dropped or (name not in self._repeated and self._taken.setdefault(image, named) == named)

    def size(self, image: str) -> Size | None:
        """(width, height) of an image, upright, by its header; None if it cannot be read."""
        if image not in self._sizes:
            try:
                self._sizes[image] = picture_size(self._root / image)
            except OSError:
                self._sizes[image] = None
        return self._sizes[image]


def is_picture(name: str) -> bool:
    """Whether a name has the suffix of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def of_no_part(name: str) -> Finding:
    """The finding for a file or folder of annotations that is of no part where others are."""
    return OTHER_PART.at(name, "Its name says no part, as those of others do: it is left out.")


def number(value: object) -> float:
    """A JSON value as a number; NaN for anything else."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.nan
    return math.nan


def size_of(width: object, height: object) -> Size | None:
    """A picture's size by the annotations; None if they have none."""
    size = number(width), number(height)
    return size if 0 < size[0] < _MOST and 0 < size[1] < _MOST else None


def class_name(value: object) -> str | None:
    """The name of a class: a text or a whole number; None for anything else, and for control characters."""
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 10**18:
        return str(value)
    name = value.strip() if isinstance(value, str) else ""
    return name if name and name.isprintable() else None


def files_in(folder: Path, *suffixes: str) -> list[Path]:
    """The visible files of a folder with one of these suffixes, in order; none if it cannot be read.

    Claims ask for those of many folders, most of which have none.
    """
    names = [name for name in _listed(folder) if name.lower().endswith(suffixes) and name[0] != "."]
    return [folder / name for name in sorted(names) if os.path.isfile(folder / name)]


def folders_of_parts(folder: Path) -> list[Path]:
    """The folders in a folder whose names say a part, in order."""
    return [folder / name for name in sorted(filter(part_in, _listed(folder))) if os.path.isdir(folder / name)]


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, in order, without hidden and system folders."""
    walk = Walk()
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.is_dir() and not walk.leaves_out(e.name, "folders")]
    except OSError:
        return []
    return [folder / name for name in sorted(names)]


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _in_words(corners: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in corners)
