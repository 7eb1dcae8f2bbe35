"""COCO: JSON files with images, annotations and categories; each annotation's bbox is an item of its category.

The files are in the data set's folder, in annotations/, or beside the images of a part, as train/_annotations.coco.json
is. Several divide the data set by a word of their names, as instances_train2017.json and instances_val2017.json do.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlex_feat.data.findings import Finding
from paddlex_feat.data.readers import boxes as kinds
from paddlex_feat.data.readers.boxes import Boxes, Pictures, class_name, files_in, folders_of_parts
from paddlex_feat.data.readers.json_stream import JsonError, json_records, reason
from paddlex_feat.data.readers.parts import part_in
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.fileio.reading import open_file

_KEYS = ("images", "annotations", "categories")
_LOOKED_AT = 2**17  # characters at the beginning and bytes at the end of a file, by which it is recognized
_TRIED = 20  # images of a file that a claim looks for, and files of a folder that it opens
_ARRAY = re.compile(rb'"(images|annotations|categories)"\s{0,9}:\s{0,9}\[')
_FIELDS = {"images": {"id", "file_name"}, "annotations": {"image_id", "category_id"}, "categories": {"id", "name"}}


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists, if a file names an image that exists; one less if none does."""
    count = 0
    for file in _candidates(folder)[:_TRIED]:
        named = _named_images(file)
        if named is None:
            continue
        count = max(count, len(names) - 1)
        folders = [folder / place for place in _image_folders(folder, file)]
        if any(os.path.isfile(place / name) for name in named for place in folders):
            return len(names)
    return count


def _candidates(folder: Path) -> list[Path]:
    """The JSON files at the places of those of COCO."""
    places = [folder, folder / "annotations", *folders_of_parts(folder)]
    return [file for place in places for file in files_in(place, ".json")]


def _image_folders(root: Path, file: Path) -> list[str]:
    """Where the images of a file may be, relative to the root."""
    stem = file.stem.removeprefix("instances_")
    beside = "" if file.parent == root or file.parent.name == "annotations" else file.parent.name
    part = [part_in(stem) or ""] if part_in(stem) else []
    names = dict.fromkeys([beside, stem, *part])
    return [place for name in names for place in (name, f"images/{name}".rstrip("/"))]


def _named_images(file: Path) -> list[str] | None:
    """The first images that a file names, perhaps none; None for a file that is not of COCO."""
    seen: set[str] = set()
    named: list[str] = []
    with suppress(JsonError, OSError):  # the text ends early
        for key, record in json_records(file, *_KEYS, max_chars=_LOOKED_AT):
            if not isinstance(record, dict) or not _FIELDS[key] <= set(record):
                continue
            seen.add(key)
            if key == "images" and isinstance(record["file_name"], str) and "\0" not in record["file_name"]:
                named.append(record["file_name"].replace("\\", "/"))
            if seen >= {"images", "annotations"}:
                break
    tail = _tail(file) if seen else b""
    seen |= {key.decode() for key in _ARRAY.findall(tail)}
    if b'"image_id"' in tail and b'"bbox"' in tail:
        seen.add("annotations")
    return named[:_TRIED] if len(seen) > 1 and seen != {"images", "categories"} else None


def _tail(file: Path) -> bytes:
    """The end of a file of which the beginning is not all."""
    with suppress(OSError), open_file(file) as stream:
        size = os.fstat(stream.fileno()).st_size
        if size > _LOOKED_AT:
            stream.seek(size - _LOOKED_AT)
            return stream.read(_LOOKED_AT)
    return b""


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    files = [file for file in _candidates(root) if _named_images(file) is not None]
    files = [file for file in files if file.stem.startswith("instances")] or files
    shown = [file.relative_to(root).as_posix() for file in files]
    understood = f"the boxes of {', '.join(shown[:5])}{' and others' if len(shown) > 5 else ''}"
    found = Boxes(root)
    return found.reading(_read_files(files, found), names, refuse_outside, understood)


def _read_files(files: list[Path], found: Boxes) -> Iterator[Finding]:
    parts = {file: part_in(file.stem) or _part_of_folder(file, found.root) for file in files}
    divided = len(files) > 1 and any(parts.values())
    pictures = Pictures(found.root)
    for file in files:
        if divided and parts[file] is None:
            yield kinds.of_no_part(file.relative_to(found.root).as_posix())
            continue
        content = _Content(file.relative_to(found.root).as_posix())
        yield from content.read(file, found)
        yield from content.add(found, pictures, _image_folders(found.root, file), parts[file] if divided else None)


def _part_of_folder(file: Path, root: Path) -> str | None:
    return None if file.parent == root else part_in(file.parent.name)


@dataclass
class _Content:
    """What a file has, in columns: annotations may come before the images and categories that they refer to.

    Attributes:
        name: of the file, for findings.
        images: by id, their names and sizes.
        categories: names by id.
        annotations: (number in the file, image id, category id) of each, in three columns.
        corners: x, y, width, height of each, one after the other.
    """

    name: str
    images: dict[object, tuple[str, kinds.Size | None]] = field(default_factory=dict)
    categories: dict[object, str] = field(default_factory=dict)
    annotations: tuple[array[int], list[object], list[object]] = field(default_factory=lambda: (array("q"), [], []))
    corners: array[float] = field(default_factory=lambda: array("d"))
    _ids: dict[object, object] = field(default_factory=dict)

    def read(self, file: Path, found: Boxes) -> Iterator[Finding]:
        """Read the file; malformed records become findings."""
        counts = dict.fromkeys(_KEYS, 0)
        readers = {"images": self._image, "annotations": self._annotation, "categories": self._category}
        try:
            for key, record in json_records(file, *_KEYS):
                if key == "annotations" and isinstance(record, dict) and record.get("iscrowd") in (1, True):
                    found.left_out["crowds"] += 1
                elif problem := readers[key](record, counts[key]):
                    yield kinds.UNUSABLE.at(f"{self.name}:{key}[{counts[key]}]", problem)
                counts[key] += 1
        except (JsonError, OSError) as error:
            yield kinds.UNREADABLE.at(self.name, f"The file cannot be read to its end: {reason(error)}.")

    def _image(self, record: Any, _: int) -> str:
        if not isinstance(record, dict) or not _is_id(record.get("id")) or not isinstance(record.get("file_name"), str):
            return "An image needs an id and a file_name."
        if record["id"] in self.images:
            return f"The id {record['id']!r} is that of another image too."
        self.images[record["id"]] = record["file_name"], kinds.size_of(record.get("width"), record.get("height"))
        return ""

    def _category(self, record: Any, _: int) -> str:
        name = class_name(record.get("name")) if isinstance(record, dict) else None
        if name is None or not _is_id(record.get("id")):
            return "A category needs an id and a name."
        if self.categories.setdefault(record["id"], name) != name:
            return f"The id {record['id']!r} is that of another category too."
        return ""

    def _annotation(self, record: Any, place: int) -> str:
        box = record.get("bbox") if isinstance(record, dict) else None
        if not isinstance(box, list) or len(box) != 4:
            return "An annotation needs a bbox of four numbers: x, y, width, height."
        image, category = record.get("image_id"), record.get("category_id")
        if not _is_id(image) or not _is_id(category):
            return "An annotation needs an image_id and a category_id."
        try:
            corners = array("d", box)
        except (TypeError, OverflowError):
            return "A bbox needs four numbers: x, y, width, height."
        places, images, categories = self.annotations
        places.append(place)
        images.append(self._ids.setdefault(image, image))
        categories.append(self._ids.setdefault(category, category))
        self.corners.extend(corners)
        return ""

    def add(self, found: Boxes, pictures: Pictures, folders: list[str], part: str | None) -> Iterator[Finding]:
        """Add each annotation to the boxes."""
        paths: dict[object, str | None] = {}
        pictures.expect(name for name, _ in self.images.values())
        for i, (place, image, category) in enumerate(zip(*self.annotations, strict=True)):
            where = f"{self.name}:annotations[{place}]"
            if image not in self.images or category not in self.categories:
                what = f"image {image!r}" if image not in self.images else f"category {category!r}"
                yield kinds.UNUSABLE.at(where, f"There is no {what}."[:200])
                continue
            name, size = self.images[image]
            if image not in paths:
                paths[image] = pictures.find(name, folders, part)
                if paths[image] is None:
                    yield kinds.NO_IMAGE.at(where, f"The image {name[:200]} is not found.")
            path = paths[image]
            if path is not None:
                x, y, width, height = self.corners[4 * i : 4 * i + 4]
                corners = (x, y, x + width, y + height)
                if problem := found.add(path, corners, self.categories[category], where, part, size):
                    yield problem
        if without := len(self.images.keys() - paths.keys()):
            found.left_out["images without boxes"] += without


def _is_id(value: object) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


COCO = ReaderSpec(
    name="COCO",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("annotations/instances_train.json",),
    layout="COCO: a JSON file with images, annotations and categories, in the folder or in annotations.",
    findings=kinds.FINDINGS,
)
