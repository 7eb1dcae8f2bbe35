"""LabelMe annotations to list files.

    <root>/annotations/**.json   one file an image; `flags` name its class
    <root>/images/**             the images
    <root>/label.txt             class names, a line each (or flags.txt; or the names found, sorted)
"""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from paddlex_feat.dataset.findings import Finding
from paddlex_feat.dataset.records import decode_list, writable
from paddlex_feat.errors import DatasetError
from paddlex_feat.pipeline.decode import SUFFIXES
from paddlex_feat.reading import read_small

PERCENTS = (50, 30, 20)  # of train, gallery and query, as in PaddleX
_NAME_FILES = ("label.txt", "flags.txt")
_MOST_NAMES, _MOST_ANNOTATION = 2**26, 2**27  # bytes of a file; an annotation may hold its image
_REDO = "Correct the annotation and convert again."


class _Claim(NamedTuple):
    """What one annotation says of an image: its class; by the image's own path, or only by its name?"""

    name: str
    where: str
    exact: bool


@dataclass
class Converted:
    """Images with their classes: paths relative to the root, labels as indices into `names`."""

    paths: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)


def find_root(dataset_dir: str) -> Path:
    """The folder that holds `annotations`, `dataset_dir` itself or one of its folders."""
    top = Path(dataset_dir)
    found = [top] if (top / "annotations").is_dir() else [p for p in sorted(top.glob("*/")) if (p / "annotations").is_dir()]
    if len(found) == 1:
        return found[0]
    raise DatasetError(
        f"Several folders with LabelMe's annotations: {', '.join(map(str, found[:10]))}."
        if found
        else "No folder with LabelMe's annotations.",
        where=f"Global.dataset_dir={dataset_dir}",
        fix="Give the folder that holds annotations/ and images/.",
    )


def convert(root: Path) -> Converted:
    """Read every annotation below `root`. What cannot be used becomes a finding, never an exception."""
    result = Converted()
    images = _ImageIndex(root)
    classes: dict[str, _Claim] = {}
    for path in sorted((root / "annotations").rglob("*")):
        where = path.relative_to(root).as_posix()
        if path.is_dir():
            continue
        if path.suffix.lower() != ".json":
            result.findings.append(Finding("labelme-other-file", "note", where, "No JSON file: not read.", "Nothing."))
            continue
        try:
            image, claim = _read(path, where, images)
        except _UnusableError as error:
            result.findings.append(Finding(error.code, "warning", where, str(error), _REDO))
            continue
        other = classes.get(image)
        if other is None or (claim.exact and not other.exact):
            classes[image], claim = claim, other or claim
        if claim.name != classes[image].name:
            kept = classes[image]
            message = f"{image} is {claim.name} here and {kept.name} in {kept.where}; the latter counts."
            result.findings.append(Finding("labelme-conflict", "warning", claim.where, message, _REDO))
    for image in sorted(images.files - set(classes)):
        message = "No annotation names a class for this image: it is left out."
        result.findings.append(Finding("labelme-image-without-class", "warning", image, message, "Annotate it."))
    _number(root, classes, result)
    return result


def _number(root: Path, classes: dict[str, _Claim], result: Converted) -> None:
    """Class names to the line numbers of label.txt or flags.txt."""
    source = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    if source:
        try:
            text, encoding = decode_list(read_small(source, _MOST_NAMES))
            if encoding == "utf-16":
                message, fix = "The names are UTF-16 text and were read as such.", "Save the file as UTF-8 text."
                result.findings.append(Finding("list-utf16", "warning", source.name, message, fix))
        except OSError as error:
            what = f"The class names cannot be read: {error.strerror}."
            raise DatasetError(what, where=str(source), fix="Write one class name a line.") from error
        except UnicodeDecodeError as error:
            raise DatasetError("The file is neither UTF-8 nor GBK text.", where=str(source), fix="Save it again.") from error
        result.names = [line.strip() for line in text.rstrip().splitlines()]
        twice = [name for name, count in Counter(result.names).items() if name and count > 1]
        if twice:
            message = f"{', '.join(twice[:5])} stands there twice; the first line counts."
            result.findings.append(Finding("labelme-name-twice", "warning", source.name, message, "Take one off."))
    else:
        result.names = sorted({claim.name for claim in classes.values()})
        message = f"Neither label.txt nor flags.txt: the {len(result.names)} class names found are numbered in order."
        result.findings.append(Finding("labelme-no-names", "warning", str(root), message, "Write label.txt."))
    numbers = {name: i for i, name in reversed(list(enumerate(result.names))) if name}
    for image, (name, where, _) in sorted(classes.items()):
        if not writable(image):
            message = f"{image!r} cannot be written in a list: it is left out."
            result.findings.append(Finding("labelme-image-name", "warning", where, message, "Rename the image."))
        elif name in numbers:
            result.paths.append(image)
            result.labels.append(numbers[name])
        else:
            message = f"The class {name!r} is not in {source.name if source else 'the names'}: {image} is left out."
            result.findings.append(Finding("labelme-unknown-class", "warning", where, message, "Add it there."))


class _UnusableError(Exception):
    """An annotation from which no image and class can be told."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code = code


def _read(path: Path, where: str, images: _ImageIndex) -> tuple[str, _Claim]:
    """(image relative to the root, its class) of one annotation. Raises _UnusableError."""
    try:
        content = json.loads(decode_list(read_small(path, _MOST_ANNOTATION))[0])
    except OSError as error:
        raise _UnusableError("labelme-not-json", f"The file cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise _UnusableError("labelme-not-json", f"The file is not JSON ({type(error).__name__}).") from None
    if not isinstance(content, dict):
        raise _UnusableError("labelme-format", f"The file holds a {type(content).__name__}, not an annotation.")
    image, exact = images.find(content.get("imagePath"), path)
    return image, _Claim(_class_of(content), where, exact)


def _true_flags(holder: Any) -> set[str]:
    flags = holder.get("flags") if isinstance(holder, dict) else None
    return {name for name, value in flags.items() if value is True} if isinstance(flags, dict) else set()


def _class_of(content: dict[str, Any]) -> str:
    """The one true flag; else the one class that the shapes name, by their flags or their labels."""
    found, origin = _true_flags(content), "flags"
    shapes = content.get("shapes")
    if not found and isinstance(shapes, list):
        origin = "shapes"
        found = set().union(*(_true_flags(shape) for shape in shapes)) or {
            str(shape["label"]).strip() for shape in shapes if isinstance(shape, dict) and shape.get("label")
        }
    if len(found) == 1:
        return found.pop().strip()
    if not found:
        raise _UnusableError("labelme-no-class", "No flag is true, and no shape names a class.")
    shown = ", ".join(sorted(found)[:5])
    raise _UnusableError("labelme-several-classes", f"Its {origin} name {len(found)} classes ({shown}), not one.")


class _ImageIndex:
    """The image files below a root, found by what an annotation calls them."""

    def __init__(self, root: Path):
        self._root = root
        folder = root / "images" if (root / "images").is_dir() else root
        found = (p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        self.files = {p.relative_to(root).as_posix() for p in found}
        self._by_end: dict[str, list[str]] = {}  # by the last one and the last two components
        for file in sorted(self.files):
            parts = file.split("/")
            for end in {"/".join(parts[-n:]) for n in (1, 2)}:
                self._by_end.setdefault(end, []).append(file)

    def find(self, image_path: Any, annotation: Path) -> tuple[str, bool]:
        """The image of an annotation, relative to the root, and whether its path says so exactly.

        A relative imagePath is taken from the annotation, from the root, from images/ and from the
        folder there that corresponds to the annotation's. Only an absolute one, which another
        machine wrote, is looked for by its last components. Raises _UnusableError.
        """
        if not isinstance(image_path, str) or not image_path.strip() or "\0" in image_path:
            raise _UnusableError("labelme-no-image", "imagePath is missing or no text.")
        wanted = image_path.strip().replace("\\", "/")
        beside = self._root / "images" / annotation.parent.relative_to(self._root / "annotations")
        for folder in (annotation.parent, self._root, self._root / "images", beside):
            relative = os.path.relpath(os.path.join(folder, wanted), self._root)
            if relative in self.files:
                return relative, True
        if not wanted.startswith("/") and wanted[1:2] != ":":
            raise _UnusableError("labelme-image-missing", f"There is no image {image_path!r}.")
        parts = [part for part in wanted.split("/") if part]
        for count in (2, 1):
            alike = self._by_end.get("/".join(parts[-count:]), [])
            if len(alike) == 1:
                return alike[0], False
            if alike:
                shown = ", ".join(alike[:3])
                raise _UnusableError("labelme-ambiguous-image", f"imagePath {image_path!r} may be any of {shown}.")
        raise _UnusableError("labelme-image-missing", f"There is no image {image_path!r}.")
