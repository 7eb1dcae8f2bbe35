"""Label Studio's exports JSON and JSON-MIN: each rectangle, in percent of its picture, is an item of its label."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from paddlex_feat.data.findings import Finding
from paddlex_feat.data.readers import boxes as kinds
from paddlex_feat.data.readers.boxes import Boxes, Pictures, class_name, files_in, is_picture, number
from paddlex_feat.data.readers.json_stream import JsonError, json_records, reason
from paddlex_feat.data.readers.parts import part_in
from paddlex_feat.data.readers.spec import ReaderSpec, Reading

_LOOKED_AT = 2**20  # characters of a file by which it is recognized
_TRIED = 20  # files that a claim opens
_RANDOM = 9  # characters that Label Studio puts before the name of an uploaded file, as in 0a1b2c3d-cat.jpg
_FOLDERS = ("", "images", "upload")
Corners = tuple[float, float, float, float]


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    return len(names) if any(map(_is_export, files_in(folder, ".json")[:_TRIED])) else 0


def _is_export(file: Path) -> bool:
    """Whether the first tasks of a file have rectangles."""
    with suppress(JsonError, OSError):  # the text ends early
        for _, task in json_records(file, max_chars=_LOOKED_AT):
            if not isinstance(task, dict):
                return False
            if _image_of(task) and any(_is_rectangle(result) for result in _results(task)[0]):
                return True
    return False


def _results(task: dict[str, Any]) -> tuple[list[Any], int]:
    """What is marked in a task, and the number of annotations that are left out.

    Of several annotations, by several people, the ground truth counts, else the first that was not cancelled.
    """
    annotations = task.get("annotations", task.get("completions"))
    if not isinstance(annotations, list):  # JSON-MIN
        lists = [value for value in task.values() if isinstance(value, list)]
        return [result for value in lists for result in value if isinstance(result, dict)], 0
    usable = [a for a in annotations if isinstance(a, dict) and not a.get("was_cancelled")]
    chosen = next((a for a in usable if a.get("ground_truth") is True), usable[0] if usable else {})
    results = chosen.get("result")
    return (results if isinstance(results, list) else []), len(annotations) - bool(chosen)


def _value(result: Any) -> Any:
    """The rectangle of a result, which JSON-MIN writes without its envelope."""
    return result.get("value", result) if isinstance(result, dict) else None


def _is_rectangle(result: Any) -> bool:
    value = _value(result)
    return isinstance(value, dict) and isinstance(value.get("rectanglelabels"), list)


def _image_of(task: dict[str, Any]) -> str | None:
    """The address of a task's picture, as Label Studio has it."""
    data = task.get("data") if isinstance(task.get("annotations", task.get("completions")), list) else task
    if not isinstance(data, dict):
        return None
    texts = {key: value for key, value in data.items() if isinstance(value, str)}
    named = [texts[key] for key in ("image", "img", "picture", "photo") if key in texts]
    return next(iter(named + [text for text in texts.values() if is_picture(_path(text))]), None)


def _path(address: str) -> str:
    """The path in an address such as /data/upload/1/0a1b2c3d-a.jpg, /data/local-files/?d=photos/a.jpg or s3://x/a.jpg."""
    try:
        parts = urlsplit(address)
        local = parse_qs(parts.query).get("d", [""])[0] if "local-files" in parts.path else ""
    except ValueError:
        return address
    if local:
        return local
    return unquote(parts.path if parts.scheme or parts.path.startswith("/data/") else address)


def _find(address: str, pictures: Pictures) -> str | None:
    """The image of an address; an uploaded file also under the name that it had before."""
    path = _path(address)
    found = pictures.find(path, _FOLDERS)
    folder, _, name = path.rpartition("/")
    if found is None and name[_RANDOM - 1 : _RANDOM] == "-" and _is_hexadecimal(name[: _RANDOM - 1]):
        found = pictures.find(f"{folder}/{name[_RANDOM:]}", _FOLDERS)
    return found


def _is_hexadecimal(text: str) -> bool:
    return all(character in "0123456789abcdef" for character in text)


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    files = [file for file in files_in(root, ".json") if _is_export(file)]
    found = Boxes(root)
    understood = f"the rectangles of {', '.join(file.name for file in files[:5])}"
    return found.reading(_read_files(files, found), names, refuse_outside, understood)


def _read_files(files: list[Path], found: Boxes) -> Iterator[Finding]:
    pictures = Pictures(found.root)
    parts = {file: part_in(file.stem) for file in files}
    divided = len(files) > 1 and any(parts.values())
    for file in files:
        if divided and parts[file] is None:
            yield kinds.of_no_part(file.name)
            continue
        try:
            for place, (_, task) in enumerate(json_records(file)):
                yield from _read_task(task, f"{file.name}[{place}]", parts[file] if divided else None, pictures, found)
        except (JsonError, OSError) as error:
            yield kinds.UNREADABLE.at(file.name, f"The file cannot be read to its end: {reason(error)}.")


def _read_task(task: Any, where: str, part: str | None, pictures: Pictures, found: Boxes) -> Iterator[Finding]:
    address = _image_of(task) if isinstance(task, dict) else None
    if address is None:
        yield kinds.UNUSABLE.at(where, "A task needs the path of an image in its data.")
        return
    results, others = _results(task)
    if others > 0:
        found.left_out["annotations by others, or cancelled"] += others
    rectangles = [(place, result) for place, result in enumerate(results) if _is_rectangle(result)]
    if len(rectangles) < len(results):
        found.left_out["results that are not labelled rectangles"] += len(results) - len(rectangles)
    if not rectangles:
        found.left_out["images without boxes"] += 1
        return
    image = _find(address, pictures)
    if image is None:
        yield kinds.NO_IMAGE.at(where, f"The image {address[:200]} is not found.")
        return
    for place, result in rectangles:
        at = f"{where}.result[{place}]"
        labels, size = _value(result)["rectanglelabels"], _size(result) or pictures.size(image)
        name = class_name(labels[0]) if len(labels) == 1 else None
        if name is None:
            yield kinds.UNUSABLE.at(at, f"A rectangle needs one label, and has {len(labels)}.")
        elif size is None:
            yield kinds.NO_IMAGE.at(at, f"Neither the result nor the header of {image} tells the picture's size.")
        elif problem := found.add(image, _corners(_value(result), size), name, at, part, size):
            yield problem


def _size(result: dict[str, Any]) -> kinds.Size | None:
    outer, value = result, _value(result)
    width, height = (outer.get(key, value.get(key)) for key in ("original_width", "original_height"))
    return kinds.size_of(width, height)


def _corners(value: dict[str, Any], size: kinds.Size) -> Corners:
    """The box in pixels around a rectangle, which may be turned about its upper left corner, clockwise."""
    x, width = (number(value.get(key)) * size[0] / 100 for key in ("x", "width"))
    y, height = (number(value.get(key)) * size[1] / 100 for key in ("y", "height"))
    angle = number(value.get("rotation") or 0)
    if angle == 0:
        return x, y, x + width, y + height
    if not math.isfinite(angle):
        return math.nan, math.nan, math.nan, math.nan
    sine, cosine = math.sin(math.radians(angle)), math.cos(math.radians(angle))
    across = [x + dx * cosine - dy * sine for dx in (0, width) for dy in (0, height)]
    down = [y + dx * sine + dy * cosine for dx in (0, width) for dy in (0, height)]
    return min(across), min(down), max(across), max(down)


LABEL_STUDIO = ReaderSpec(
    name="LabelStudio",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("an export of Label Studio as JSON",),
    layout="Label Studio: an export as JSON or JSON-MIN, with rectanglelabels, in the folder that holds the images.",
    findings=kinds.FINDINGS,
)
