"""LabelMe's shapes: rectangles and polygons of JSON files, by default beside their images, as items of their label.

LabelMe is also used to give each image one class, with a shape that is of no interest or around the whole picture; mode
check_dataset converts that (`CheckDataset.convert.src_dataset_type=LabelMe`). A folder is recognized here only if one
of its first files has two shapes of different place or label, or one that leaves a twentieth of the picture out.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from paddlex_feat.data.findings import Finding
from paddlex_feat.data.images.folders import Walk, files_below
from paddlex_feat.data.readers import boxes as kinds
from paddlex_feat.data.readers.boxes import Boxes, Pictures, class_name, files_in, folders_in, folders_of_parts, number
from paddlex_feat.data.readers.json_stream import reason
from paddlex_feat.data.readers.list_text import decode_list
from paddlex_feat.data.readers.parts import part_of
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.fileio.reading import first_bytes, read_small

_HEAD = 65536
_TRIED = 20  # files that a claim opens
_WHOLE = 0.95  # share of the picture from which on a shape is around all of it
_IGNORED = {"__ignore__", "_background_"}  # by LabelMe's own scripts too
_SHAPES = ("rectangle", "polygon")
Corners = tuple[float, float, float, float]


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    """All lists where the annotations are in the folder, in one of a part, or in several of its folders."""
    places = [folder, folder / "annotations", *folders_of_parts(folder)]
    if any(map(_holds_boxes, places)):
        return len(names)
    others = (place for place in folders_in(folder)[:_TRIED] if place not in places)
    return len(names) if len(list(islice(filter(_holds_boxes, others), 2))) == 2 else 0


def _holds_boxes(folder: Path) -> bool:
    return any(map(_has_boxes, files_in(folder, ".json")[:_TRIED]))


def _has_boxes(file: Path) -> bool:
    """Whether an annotation has shapes that tell parts of the picture apart."""
    try:
        head = first_bytes(file, _HEAD).lstrip(b"\xef\xbb\xbf \t\r\n")
    except OSError:
        return False
    if head[:1] != b"{" or not any(key in head for key in (b'"shapes"', b'"imagePath"', b'"imageData"')):
        return False
    content = _content(file)
    if not isinstance(content, dict) or not isinstance(content.get("shapes"), list) or "imagePath" not in content:
        return False
    shapes = [
        (corners, label) for shape in content["shapes"] if (corners := _corners(shape)) and (label := _label(shape))
    ]
    if len(set(shapes)) > 1:
        return True
    size = kinds.size_of(content.get("imageWidth"), content.get("imageHeight"))
    if not shapes or size is None:
        return False
    x1, y1, x2, y2 = shapes[0][0]
    return 0 < (x2 - x1) * (y2 - y1) < _WHOLE * size[0] * size[1]


def _content(file: Path) -> Any:
    """The content of a JSON file; a text, why it cannot be read, in its place."""
    try:
        return json.loads(decode_list(read_small(file, kinds.MAX_ANNOTATION_BYTES))[0])
    except OSError as error:
        return reason(error)
    except (ValueError, RecursionError) as error:
        return f"it is not JSON ({type(error).__name__})"


def _label(shape: dict[str, Any]) -> str | None:
    name = class_name(shape.get("label"))
    return None if name in _IGNORED else name


def _corners(shape: Any) -> Corners | None:
    """The box around a rectangle or polygon; None for other shapes and for points that are not pairs of numbers."""
    if not isinstance(shape, dict) or shape.get("shape_type", "polygon") not in _SHAPES:
        return None
    points = shape.get("points")
    if not isinstance(points, list) or len(points) < 2 or not all(isinstance(p, list) and len(p) == 2 for p in points):
        return None
    across, down = [number(p[0]) for p in points], [number(p[1]) for p in points]
    if any(value != value for value in (*across, *down)):
        return None
    return min(across), min(down), max(across), max(down)


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    found = Boxes(root)
    return found.reading(_read_files(found), names, refuse_outside, "the rectangles and polygons of *.json")


def _read_files(found: Boxes) -> Iterator[Finding]:
    below = (Path(file) for file in files_below(Walk(), str(found.root)) if file.lower().endswith(".json"))
    files = [file.relative_to(found.root).as_posix() for file in sorted(below)]
    parts = {file: next(filter(None, map(part_of, file.split("/")[:-1])), None) for file in files}
    divided = len({part for part in parts.values() if part}) > 1
    pictures = Pictures(found.root)
    for file in files:
        content = _content(found.root / file)
        if isinstance(content, str):
            yield kinds.UNREADABLE.at(file, f"The annotation cannot be read: {content}.")
        elif not isinstance(content, dict) or not isinstance(content.get("shapes"), list):
            found.left_out["JSON files of other programs"] += 1
        elif divided and parts[file] is None:
            yield kinds.of_no_part(file)
        else:
            yield from _read_content(content, file, parts[file] if divided else None, pictures, found)


def _read_content(
    content: dict[str, Any], file: str, part: str | None, pictures: Pictures, found: Boxes
) -> Iterator[Finding]:
    named, folder = content.get("imagePath"), file.rpartition("/")[0]
    image = pictures.find(named, (folder, "", "images")) if isinstance(named, str) else None
    if image is None:
        yield kinds.NO_IMAGE.at(file, f"The image {str(named)[:200]} is not found.")
        return
    size = kinds.size_of(content.get("imageWidth"), content.get("imageHeight"))
    if not content["shapes"]:
        found.left_out["images without boxes"] += 1
    for place, shape in enumerate(content["shapes"]):
        where, corners = f"{file}:shapes[{place}]", _corners(shape)
        if isinstance(shape, dict) and shape.get("shape_type", "polygon") not in _SHAPES:
            found.left_out[f"shapes of type {str(shape.get('shape_type'))[:40]}"] += 1
        elif corners is None or not (name := class_name(shape.get("label"))):
            yield kinds.UNUSABLE.at(where, "A shape needs a label and two points or more.")
        elif name in _IGNORED:
            found.left_out[f"shapes {name}"] += 1
        elif problem := found.add(image, corners, name, where, part, size):
            yield problem


LABELME_SHAPES = ReaderSpec(
    name="LabelMeShapes",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("LabelMe's JSON files beside the images",),
    layout="LabelMe: a JSON file for each image, beside it, with a rectangle or polygon around each thing.",
    findings=kinds.FINDINGS,
)
