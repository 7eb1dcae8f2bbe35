"""YOLO: for images/…/a.jpg a text file labels/…/a.txt, with a line for each box: its class, and parts of the picture.

A YAML file names the classes and the folders of train, val and test; without one, classes.txt has a class name a line.
Lines of segmentation (class, then three corners or more) become the box around the corners.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from paddlex_feat.data.findings import MAX_PER_CODE, Finding
from paddlex_feat.data.readers import boxes as kinds
from paddlex_feat.data.readers.boxes import Boxes, Pictures, class_name, files_in, folders_in
from paddlex_feat.data.readers.json_stream import reason
from paddlex_feat.data.readers.list_text import MAX_LIST_BYTES, decode_list
from paddlex_feat.data.readers.parts import TRAIN, part_of
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.fileio import safe_yaml
from paddlex_feat.fileio.reading import first_bytes, read_small

_NAMES = re.compile(rb"^[\"']?names[\"']?\s*:", re.MULTILINE)
_PARTS = re.compile(rb"^[\"']?(train|val|test)[\"']?\s*:", re.MULTILINE)
_HEAD = 65536
_TRIED = 5  # files that a claim opens
_MAX_LABEL_BYTES = 2**24  # of the labels of an image
_YAML_PARTS = ("train", "val", "test")


@dataclass
class _Plan:
    """What the YAML file or classes.txt say.

    Attributes:
        name: of that file.
        classes: names by number.
        images: part and folder or list of images of each entry, relative to the root; (None, "") for all images.
        keypoints: whether lines have a box and then keypoints.
        findings: what is wrong with it.
    """

    name: str
    classes: dict[int, str] = field(default_factory=dict)
    images: list[tuple[str | None, str]] = field(default_factory=list)
    keypoints: bool = False
    findings: list[Finding] = field(default_factory=list)


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists where a file names the classes and labels look like YOLO's; one less where there are no such labels."""
    if _yaml_file(folder) is None and (_classes_file(folder) is None or not _folders_of_labels(folder)):
        return 0
    return len(names) - (not _has_labels(folder))


def _yaml_file(folder: Path) -> Path | None:
    return next((file for file in files_in(folder, ".yaml", ".yml")[: 4 * _TRIED] if _describes(file)), None)


def _describes(file: Path) -> bool:
    try:
        head = first_bytes(file, _HEAD)
    except OSError:
        return False
    return bool(_NAMES.search(head) and _PARTS.search(head))


def _classes_file(folder: Path) -> Path | None:
    return next((file for file in (folder / "classes.txt", folder / "labels" / "classes.txt") if file.is_file()), None)


def _folders_of_labels(folder: Path) -> list[Path]:
    """The folders `labels` that there are, and those in them."""
    tops = [folder, *folders_in(folder), *folders_in(folder / "data")]
    places = [top / "labels" for top in tops if (top / "labels").is_dir()]
    return [place for top in places for place in (top, *folders_in(top))]


def _has_labels(folder: Path) -> bool:
    """Whether some file in a folder `labels` is of lines of numbers."""
    for place in _folders_of_labels(folder):
        files = [file for file in files_in(place, ".txt") if file.name != "classes.txt"]
        for file in files[:_TRIED]:
            try:
                values = first_bytes(file, 4096).partition(b"\n")[0].decode("ascii", "replace").split()
                if values and values[0].isdecimal() and _corners(values[1:], keypoints=True):
                    return True
            except OSError:
                continue
    return False


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    found, described = Boxes(root), _yaml_file(root)
    if described is not None:
        plan = _plan_of_yaml(described, root)
    else:
        plan = _plan_of_classes(_classes_file(root) or root / "classes.txt", root)
    return found.reading(
        _read_plan(plan, found), names, refuse_outside, f"the boxes of labels/, classes of {plan.name}"
    )


def _plan_of_classes(file: Path, root: Path) -> _Plan:
    plan = _Plan(file.relative_to(root).as_posix(), images=[(None, "")])
    try:
        lines = decode_list(read_small(file, MAX_LIST_BYTES))[0].splitlines()
        plan.classes = {number: name for number, line in enumerate(lines) if (name := class_name(line))}
    except (OSError, UnicodeDecodeError) as error:
        plan.findings.append(kinds.UNREADABLE.at(plan.name, f"The classes cannot be read: {reason(error)}."))
    return plan


def _plan_of_yaml(file: Path, root: Path) -> _Plan:
    plan = _Plan(file.name)
    try:
        content = safe_yaml.read(safe_yaml.read_text(file))[0]
    except (OSError, yaml.YAMLError, ValueError, RecursionError) as error:
        message = f"The file cannot be read: {' '.join(reason(error).split())[:200]}."
        plan.findings.append(kinds.UNREADABLE.at(plan.name, message))
        return plan
    if not isinstance(content, dict):
        plan.findings.append(kinds.UNREADABLE.at(plan.name, "The file holds no keys."))
        return plan
    plan.classes = _classes(content.get("names"))
    plan.keypoints = content.get("kpt_shape") is not None
    missing = []
    for key in _YAML_PARTS:
        values = content.get(key)
        for value in values if isinstance(values, list) else [values] if values else []:
            place = _place(str(value), str(content.get("path") or ""), root)
            if place is None:
                missing.append((key, f"{key}: {str(value)[:200]} is not found in the folder of the data set."))
            else:
                plan.images.append((part_of(key), place))
    evaluated = any(part != TRAIN for part, _ in plan.images)
    for key, message in missing:  # programs name folders that they have not exported
        spec = kinds.NO_PART if evaluated and part_of(key) != TRAIN else kinds.UNREADABLE
        plan.findings.append(spec.at(plan.name, message))
    return plan


def _classes(names: Any) -> dict[int, str]:
    """Names by number, of a list or of a mapping."""
    pairs = enumerate(names) if isinstance(names, list) else names.items() if isinstance(names, dict) else ()
    found = {}
    for number, value in pairs:
        if isinstance(value, bool):
            value = "yes" if value else "no"  # which YAML reads as truth values
        name = class_name(str(value) if isinstance(value, float) else value)
        if name is not None and str(number).isdecimal():
            found[int(number)] = name
    return found


def _place(value: str, path: str, root: Path) -> str | None:
    """A folder or list of images that a YAML file names, relative to the root; None if it is not below it.

    `path` is often that of another machine, and files of Roboflow write ../train/images for train/images: so it is also
    looked for without its first components.
    """
    if "\0" in value + path:
        return None
    inside = os.path.realpath(root)
    parts = [part for part in value.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    tried = [os.path.join(root, path, value), os.path.join(root, value)]
    named = next((place for place, part in enumerate(parts) if part_of(part)), len(parts) - 1)
    tried += [os.path.join(root, *parts[start:]) for start in range(named + 1)]  # the folder of a part is not dropped
    for place in map(os.path.realpath, tried):
        if os.path.exists(place) and os.path.commonpath([inside, place]) == inside:
            relative = os.path.relpath(place, inside).replace(os.sep, "/")
            return "" if relative == "." else relative
    return None


def _read_plan(plan: _Plan, found: Boxes) -> Iterator[Finding]:
    yield from plan.findings
    if not plan.classes:
        yield kinds.UNUSABLE.at(plan.name, "It names no classes.")
        return
    pictures = Pictures(found.root)
    ordered, used = sorted(pictures.files), set[str]()
    for part, place in plan.images:
        if place.endswith(".txt"):
            images, missing = _listed(place, pictures, found.root)
            yield from missing
        else:
            images = [image for image in ordered if _is_below(image, place)]
        for image in images:
            if image not in used:
                used.add(image)
                yield from _read_image(image, part or _part_of_path(image, plan), plan, pictures, found)
    if rest := len(pictures.files) - len(used):
        found.left_out["images elsewhere"] += rest


def _is_below(image: str, place: str) -> bool:
    """Whether an image is in a folder; of the whole data set those in a folder `images` are."""
    return image.startswith(f"{place}/") if place else "images" in image.split("/")[:-1]


def _part_of_path(image: str, plan: _Plan) -> str | None:
    """The part that a folder of the path names, where no YAML file does."""
    named = [] if plan.images != [(None, "")] else [part_of(name) for name in image.split("/")[:-1]]
    return next(filter(None, named), None)


def _listed(place: str, pictures: Pictures, root: Path) -> tuple[list[str], list[Finding]]:
    """The images that a text file names, a path a line, and the findings for those that do not exist."""
    try:
        lines = decode_list(read_small(root / place, MAX_LIST_BYTES))[0].splitlines()
    except (OSError, UnicodeDecodeError) as error:
        return [], [kinds.UNREADABLE.at(place, f"The list cannot be read: {reason(error)}.")]
    images: list[str] = []
    missing: list[Finding] = []
    for number, line in enumerate(lines, 1):
        image = pictures.find(line, (place.rpartition("/")[0], "")) if line.strip() else ""
        if image is None:
            if len(missing) <= MAX_PER_CODE:
                missing.append(kinds.NO_IMAGE.at(f"{place}:{number}", f"The image {line[:200]} is not found."))
        elif image:
            images.append(image)
    return images, missing


def _read_image(image: str, part: str | None, plan: _Plan, pictures: Pictures, found: Boxes) -> Iterator[Finding]:
    """Add the boxes of an image."""
    place = _labels_of(image)
    try:
        lines = decode_list(read_small(found.root / place, _MAX_LABEL_BYTES))[0].splitlines()
    except FileNotFoundError:
        found.left_out["images without labels"] += 1
        return
    except (OSError, UnicodeDecodeError) as error:
        yield kinds.UNREADABLE.at(place, f"The labels cannot be read: {reason(error)}.")
        return
    size = pictures.size(image) if any(map(str.strip, lines)) else None
    if size is None:
        if any(map(str.strip, lines)):
            yield kinds.NO_IMAGE.at(place, f"The header of {image} does not tell its size.")
        else:
            found.left_out["images without boxes"] += 1
        return
    for number, line in enumerate(lines, 1):
        values = line.split()
        if not values:
            continue
        corners = _corners(values[1:], plan.keypoints)
        name = plan.classes.get(int(values[0])) if values[0].isdecimal() and len(values[0]) < 10 else None
        where = f"{place}:{number}"
        if name is None:
            yield kinds.UNUSABLE.at(where, f"{plan.name} names no class {values[0][:40]!r}.")
        elif corners is None:
            yield kinds.UNUSABLE.at(where, "A line needs a class and x, y, width, height, or three corners or more.")
        else:
            (width, height), (x1, y1, x2, y2) = size, corners
            scaled = (x1 * width, y1 * height, x2 * width, y2 * height)
            if problem := found.add(image, scaled, name, where, part, size):
                yield problem


def _labels_of(image: str) -> str:
    """The file of an image's labels: the last folder `images` becomes `labels`."""
    *folders, name = image.split("/")
    for i in reversed(range(len(folders))):
        if folders[i] == "images":
            folders[i] = "labels"
            break
    return "/".join([*folders, os.path.splitext(name)[0] + ".txt"])


def _corners(values: list[str], keypoints: bool) -> tuple[float, float, float, float] | None:
    """x1, y1, x2, y2 in parts of the picture's size; None for values that are neither a box nor a polygon."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        return None
    if not all(map(math.isfinite, numbers)):
        return None
    if len(numbers) in (4, 5) or (keypoints and len(numbers) > 4):  # the fifth is a network's confidence
        x, y, width, height = numbers[:4]
        return x - width / 2, y - height / 2, x + width / 2, y + height / 2
    if len(numbers) < 6 or len(numbers) % 2:
        return None
    return min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])


YOLO = ReaderSpec(
    name="YOLO",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("data.yaml",),
    layout="YOLO: a YAML file with names and the folders of train, val and test, or classes.txt; images beside labels.",
    findings=kinds.FINDINGS,
)
