"""LabelMe annotations to list files.

    <root>/annotations/**.json   one file an image; `flags` name its class
    <root>/images/**             the images
    <root>/label.txt             class names, a line each (or flags.txt; or the names found, sorted)
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlex_feat.dataset.findings import Finding
from paddlex_feat.dataset.records import decode_list
from paddlex_feat.errors import DatasetError
from paddlex_feat.pipeline.decode import SUFFIXES

PERCENTS = (50, 30, 20)  # of train, gallery and query, as in PaddleX
_NAME_FILES = ("label.txt", "flags.txt")
_REDO = "Correct the annotation and convert again."


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
        f"{len(found) or 'No'} folder{'s' if len(found) > 1 else ''} with LabelMe's annotations.",
        where=f"Global.dataset_dir={dataset_dir}",
        fix="Give the folder that holds annotations/ and images/.",
    )


def convert(root: Path) -> Converted:
    """Read every annotation below `root`. What cannot be used becomes a finding, never an exception.

    Raises DatasetError if nothing can be used.
    """
    result = Converted()
    images = _ImageIndex(root)
    classes: dict[str, tuple[str, str]] = {}  # image -> (class name, annotation)
    for path in sorted((root / "annotations").rglob("*")):
        where = path.relative_to(root).as_posix()
        if path.is_dir():
            continue
        if path.suffix.lower() != ".json":
            result.findings.append(Finding("labelme-other-file", "note", where, "No JSON file: not read.", "Nothing."))
            continue
        try:
            image, name = _read(path, images)
        except _UnusableError as error:
            result.findings.append(Finding(error.code, "warning", where, str(error), _REDO))
            continue
        other = classes.setdefault(image, (name, where))
        if other[0] != name:
            message = f"{image} is {name} here and {other[0]} in {other[1]}; the latter counts."
            result.findings.append(Finding("labelme-conflict", "warning", where, message, _REDO))
    idle = sorted(images.files - set(classes))
    for image in idle:
        message = "No annotation names a class for this image: it is left out."
        result.findings.append(Finding("labelme-image-without-class", "warning", image, message, "Annotate it."))
    _number(root, classes, result)
    if not result.paths:
        raise DatasetError(
            "No annotation could be used; the first: "
            + (f"{result.findings[0].where}: {result.findings[0].message}" if result.findings else "there is none."),
            where=str(root / "annotations"),
            fix="Each needs imagePath and one true entry in flags.",
        )
    return result


def _number(root: Path, classes: dict[str, tuple[str, str]], result: Converted) -> None:
    """Class names to the line numbers of label.txt or flags.txt."""
    source = next((root / name for name in _NAME_FILES if (root / name).is_file()), None)
    if source:
        try:
            text = decode_list(source.read_bytes())[0]
        except UnicodeDecodeError as error:
            raise DatasetError("The file is neither UTF-8 nor GBK text.", where=str(source), fix="Save it again.") from error
        result.names = [line.strip() for line in text.rstrip().split("\n")]
    else:
        result.names = sorted({name for name, _ in classes.values()})
        message = f"Neither label.txt nor flags.txt: the {len(result.names)} class names found are numbered in order."
        result.findings.append(Finding("labelme-no-names", "warning", str(root), message, "Write label.txt."))
    numbers = {name: i for i, name in reversed(list(enumerate(result.names))) if name}
    for image, (name, where) in sorted(classes.items()):
        if name in numbers:
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


def _read(path: Path, images: _ImageIndex) -> tuple[str, str]:
    """(image relative to the root, class name) of one annotation. Raises _UnusableError."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _UnusableError("labelme-not-json", f"The file is not JSON ({type(error).__name__}).") from None
    if not isinstance(content, dict):
        raise _UnusableError("labelme-format", f"The file holds a {type(content).__name__}, not an annotation.")
    return images.find(content.get("imagePath"), path), _class_of(content)


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
    """The image files below a root, found by whatever an annotation calls them."""

    def __init__(self, root: Path):
        self._root = root.resolve()
        folder = root / "images" if (root / "images").is_dir() else root
        found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        self.files = {p.relative_to(root).as_posix() for p in found}
        self._names = Counter(Path(f).name for f in self.files)

    def find(self, image_path: Any, annotation: Path) -> str:
        """The image of an annotation, relative to the root. Raises _UnusableError.

        imagePath is tried as a path from the annotation, from the root and from images/; else the
        file whose trailing components agree longest is taken, if there is just one.
        """
        if not isinstance(image_path, str) or not image_path.strip() or "\0" in image_path:
            raise _UnusableError("labelme-no-image", "imagePath is missing or no text.")
        wanted = image_path.strip().replace("\\", "/")
        for folder in (annotation.parent, self._root, self._root / "images"):
            try:
                relative = (folder / wanted).resolve().relative_to(self._root).as_posix()
            except (ValueError, OSError, RuntimeError):
                continue
            if relative in self.files:
                return relative
        parts = [p for p in wanted.split("/") if p not in ("", ".", "..")]
        alike = sorted(f for f in self.files if parts and Path(f).name == parts[-1])
        best = [f for f in alike if _agreement(f, parts) == max(_agreement(g, parts) for g in alike)]
        if len(best) == 1:
            return best[0]
        if best:
            raise _UnusableError("labelme-ambiguous-image", f"imagePath {image_path!r} may be any of {', '.join(best[:3])}.")
        raise _UnusableError("labelme-image-missing", f"There is no image {image_path!r}.")


def _agreement(file: str, parts: list[str]) -> int:
    """How many trailing components of two paths agree."""
    count = 0
    for a, b in zip(reversed(file.split("/")), reversed(parts), strict=False):
        if a != b:
            break
        count += 1
    return count
