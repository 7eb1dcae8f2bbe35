"""The images of a data set as a reader finds them: with names of classes, and in parts; they become lists."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from paddlex_feat.data.findings import Finding
from paddlex_feat.data.images.source import ImageSource, file_of
from paddlex_feat.data.lists import outside
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.lists.outside import Bounds
from paddlex_feat.fileio.addresses import is_url

UNDIVIDED = "all"  # the list of a data set that has neither gallery nor query
MAX_DIGITS = 18  # of a label that is a number
MAX_LABEL = 2**31  # article numbers and the like are names


@dataclass
class Part:
    """One list in the making, as columns.

    Attributes:
        images: path or `ImageSource` of each image.
        classes: name of the class of each.
        lines: line of each in the data set's file; empty for formats without lines.
        cameras: number of the camera of each; empty for formats without cameras.
        file: that names the images; "" for that of `Items`.
    """

    images: list[str] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    cameras: list[int] = field(default_factory=list)
    file: str = ""

    def add(self, image: str, name: str, line: int | None = None, camera: int | None = None) -> None:
        """Append an image of the class `name`."""
        self.images.append(image)
        self.classes.append(name)
        if line is not None:
            self.lines.append(line)
        if camera is not None:
            self.cameras.append(camera)


class Items:
    """The parts of a data set.

    Attributes:
        root: the data set's folder, which paths are relative to.
        file: that names the images, for messages; "" for none.
        parts: by name: "train", "gallery", "query" or UNDIVIDED.
        leave_one_out: whether gallery and query are the same images, and none counts as a match of itself.
    """

    def __init__(self, root: Path, file: str = ""):
        self.root, self.file = root, file
        self.parts: dict[str, Part] = {}
        self.leave_one_out = False

    def part(self, name: str) -> Part:
        """The part of this name, which is made if there is none."""
        return self.parts.setdefault(name, Part())

    def evaluate(self, part: Part) -> None:
        """Make a part both gallery and query."""
        self.parts["gallery"] = self.parts["query"] = part
        self.leave_one_out = True

    def lists(self, names: tuple[str, ...]) -> dict[str, ImageList]:
        """The lists of these names; UNDIVIDED in their place where the data set has no other part.

        Labels are the names of the classes if all of them are whole numbers below 2^31 without zeros before them, else
        their places in the order of all names.
        """
        numbers = _numbers({name for part in self.parts.values() for name in part.classes})
        named = {number: name for name, number in numbers.items() if str(number) != name}
        found = {}
        for name in (UNDIVIDED,) if UNDIVIDED in self.parts else names:
            part = self.parts.get(name, Part())
            labels = [numbers[c] for c in part.classes]
            file = part.file or self.file or None
            found[name] = ImageList(name, self.root, part.images, labels, part.lines, file=file, names=named)
            found[name].cameras = part.cameras
        if self.leave_one_out and "query" in found:
            found["query"].leave_one_out = True
        return found

    def refuse_outside(self) -> Iterator[Finding]:
        """Take images off whose paths lead out of the folder, and say so."""
        bounds, folder = Bounds(self.root), os.path.join(self.root, "")
        known: dict[str, outside.Problem | None] = {}  # by file, which may have many images
        for part in _once(self.parts):
            kept, listed = [], part.file or self.file
            for index, image in enumerate(part.images):
                file = file_of(image)
                if file not in known:
                    # Addresses, and bytes in a file that the reader has found in the folder, have no path of their own.
                    within = isinstance(image, ImageSource) and (image.length is not None or is_url(file))
                    known[file] = None if within else bounds.problem(file.removeprefix(folder))
                problem = known[file]
                if problem is None:
                    kept.append(index)
                    continue
                spec, message = problem
                where = f"{listed}:{part.lines[index]}" if part.lines else image
                fix = f"{outside.FIX.format(listed or self.root)} CheckDataset.outside=warn allows it."
                yield spec.at(where, f"{image} {message}", severity="error", fix=fix)
            if len(kept) < len(part.images):
                part.images = [part.images[i] for i in kept]
                part.classes = [part.classes[i] for i in kept]
                part.lines = [part.lines[i] for i in kept] if part.lines else []
                part.cameras = [part.cameras[i] for i in kept] if part.cameras else []


def _once(parts: dict[str, Part]) -> list[Part]:
    """Each part once, also if it has two names."""
    return list({id(part): part for part in parts.values()}.values())


def _numbers(names: set[str]) -> dict[str, int]:
    if all(name.isascii() and name.isdigit() and len(name) <= MAX_DIGITS for name in names):
        values = {name: int(name) for name in names}
        if all(str(value) == name and value < MAX_LABEL for name, value in values.items()):
            return values
    return {name: number for number, name in enumerate(sorted(names))}
