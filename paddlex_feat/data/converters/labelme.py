"""LabelMe annotations to list files.

    <root>/annotations/**.json   one file an image; `flags`, or the label of its shapes, name its class
    <root>/images/**             the images
    <root>/label.txt             class names, a line each (or flags.txt; or the names found, sorted)

Where no folder annotations/ holds any, annotations lie beside their images, as LabelMe saves them.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from paddlex_feat.data.converters import labelme_findings as kinds
from paddlex_feat.data.converters.labelme_images import Images, UnusableError, Written, read_annotation, write_pictures
from paddlex_feat.data.converters.spec import Converted, ConverterSpec
from paddlex_feat.data.images.folders import Walk, files_below, in_words, is_image
from paddlex_feat.data.lists.transaction import LISTS
from paddlex_feat.data.readers.list_text import decode_list
from paddlex_feat.data.readers.shitu_rec import UTF16, is_listable_path
from paddlex_feat.errors import DatasetError
from paddlex_feat.fileio.lookup import problem
from paddlex_feat.fileio.reading import read_small

_NAME_FILES = ("label.txt", "flags.txt")
_OTHER_LISTS = tuple(f"{name}.txt" for name in (*LISTS, "label", "flags", "labels"))  # and their .bak: no images
_OF_LABELME = {"imagePath", "imageData", "shapes", "flags"}  # keys, of which an annotation has one at least
_NO_CLASS = {"__ignore__", "_background_"}  # labels that LabelMe's own scripts leave out
_MAX_NAMES_BYTES = 2**26  # bytes of a file


class _Claim(NamedTuple):
    """The class that one annotation gives an image; `exact` if its imagePath is the image's path, not only its name."""

    name: str
    where: str
    exact: bool


class _Files(NamedTuple):
    """The annotations below a root, in order, and its images; `beside` if there is no folder annotations/ with any."""

    annotations: list[Path]
    images: Images
    beside: bool


def find_root(dataset_dir: str) -> Path:
    """The folder that holds `annotations`, `dataset_dir` itself or one of its folders; else `dataset_dir`.

    Raises DatasetError if there are several, or no JSON file at all.
    """
    top, walk, where = Path(dataset_dir), Walk(), f"Global.dataset_dir={dataset_dir}"
    give = "Give the folder that holds annotations/ and images/, or that with the annotations beside their images."
    if not os.path.isdir(dataset_dir):
        what = problem("The data set folder", dataset_dir, "folder")
        raise DatasetError(what, where=where, fix=give, code="dataset-folder-missing")
    folders = (p for p in sorted(top.glob("*/")) if not walk.leaves_out(p.name, "folders"))
    found = [top] if (top / "annotations").is_dir() else [p for p in folders if (p / "annotations").is_dir()]
    if len(found) > 1:
        what = f"Several folders with LabelMe's annotations: {', '.join(map(str, found[:10]))}."
        raise DatasetError(what, where=where, fix="Give one of them.", code="several-datasets")
    if not found and top.name == "annotations" and (top.parent / "images").is_dir():
        what = "This is the folder annotations/ itself; images/ is beside it."
        raise DatasetError(what, where=where, fix=f"Give {top.parent}.", code="annotations-folder-given")
    if not found and not any(file.lower().endswith(".json") for file in files_below(walk, dataset_dir, follow=False)):
        raise DatasetError("No folder with LabelMe's annotations.", where=where, fix=give, code="no-annotations")
    return found[0] if found else top


def convert(root: Path) -> Converted:
    """Read every annotation below `root`; nothing is written.

    What cannot be used becomes a finding, never an exception, unless it is the file of class names.
    """
    result = Converted()
    annotations, images, beside = _files(root, result)
    source = _names_file(root, annotations if beside else [])
    if source is not None:
        result.names = _read_names(source, result)
    names = frozenset(filter(None, result.names))
    classes: dict[str, _Claim] = {}
    foreign: list[str] = []
    unused: Counter[str] = Counter()
    for path in annotations:
        where = path.relative_to(root).as_posix()
        try:
            content = read_annotation(path)
            if not isinstance(content, dict) and not beside:
                raise UnusableError(kinds.FORMAT, f"The file holds a {type(content).__name__}, not an annotation.")
            if not isinstance(content, dict) or _OF_LABELME.isdisjoint(content):
                foreign.append(where)
                continue
            image, exact = images.find(content, path)
            claim = _Claim(_class_of(content, names, unused), where, exact)
        except UnusableError as error:
            result.findings.append(error.kind.at(where, str(error)))
            continue
        other = classes.get(image)
        if other is None or (claim.exact and not other.exact):
            classes[image], claim = claim, other or claim
        if claim.name != classes[image].name:
            kept = classes[image]
            message = f"{image} is {claim.name} here and {kept.name} in {kept.where}; the latter counts."
            result.findings.append(kinds.CONFLICT.at(claim.where, message))
    for image in sorted(images.files - set(classes)):
        message = "No annotation names a class for this image: it is left out."
        result.findings.append(kinds.WITHOUT_CLASS.at(image, message))
    if foreign:
        message = f"JSON files of other tools, which are not read: {len(foreign)} ({', '.join(foreign[:5])})."
        result.findings.append(kinds.OTHER_FORMAT.at(foreign[0], message))
    if unused and source is not None:
        message = f"Labels that are not in it, and were not used as classes, by annotations: {in_words(unused)}."
        fix = f"If one of them is a class, add it to {source.name}."
        result.findings.append(kinds.LABEL_UNUSED.at(source.name, message, fix=fix))
    _number(root, classes, source, result)
    inside = {path: images.inside[path] for path in result.paths if path in images.inside}
    result.write_images = partial(write_pictures, root, inside)
    for image, (_, path) in inside.items():
        where, message = path.relative_to(root).as_posix(), f"There is no image file: imageData becomes {image}."
        result.findings.append(kinds.IMAGE_INSIDE.at(where, message))
    return result


def _files(root: Path, result: Converted) -> _Files:
    """Find the annotations and images below a root; other files become notes."""
    walk, folder, written = Walk(), root / "annotations", Written.read(root)
    listed = sorted(map(Path, files_below(walk, str(folder), follow=False)))
    beside = not any(map(_is_json, listed))
    others: list[Path] = []
    if beside:
        walk, folder = Walk(), root
        listed = sorted(map(Path, files_below(walk, str(root), follow=False)))
        images = [path for path in listed if _is_image(path, walk)]
        if walk.left_out:
            message = f"Files beside annotations and images: {in_words(walk.left_out)}."
            result.findings.append(kinds.OTHER_FILE.at(str(root), message))
    else:
        others = [path for path in listed if _is_image(path, Walk())]
        for path in listed:
            if not _is_json(path):
                where = path.relative_to(root).as_posix()
                result.findings.append(kinds.OTHER_FILE.at(where, "Not a JSON file: not read."))
        top = root / "images"
        if written.made:
            walk, top = Walk(), root  # in which annotations/ lies
        images = [path for path in map(Path, files_below(walk, str(top), follow=False)) if _is_image(path, walk)]
    for error in walk.errors:
        message = f"The folder cannot be read ({error.strerror})."
        where = str(error.filename)
        result.findings.append(kinds.FOLDER_UNREADABLE.at(where, message))
    if not beside:
        walk.log(str(root))
    return _Files([path for path in listed if _is_json(path)], Images(root, folder, images, others, written), beside)


def _is_json(path: Path) -> bool:
    return path.suffix.lower() == ".json"


def _is_image(path: Path, walk: Walk) -> bool:
    """Whether a file below a root is an image; annotations, lists and class names are not counted as left out."""
    ours = _is_json(path) or path.name.startswith(_OTHER_LISTS)
    return not ours and is_image(str(path), walk) and path.is_file()


def _names_file(root: Path, beside: list[Path]) -> Path | None:
    """label.txt or flags.txt of the root, else of the folder that holds all annotations beside their images."""
    below = [Path(os.path.commonpath([path.parent for path in beside]))] if beside else []
    files = (folder / name for folder in [root, *below] for name in _NAME_FILES)
    return next((file for file in files if file.is_file()), None)


def _read_names(source: Path, result: Converted) -> list[str]:
    """The class names by line. Raises DatasetError."""
    try:
        text, encoding = decode_list(read_small(source, _MAX_NAMES_BYTES))
    except OSError as error:
        what = f"The class names cannot be read: {error.strerror}."
        raise DatasetError(
            what, where=str(source), fix="Write one class name a line.", code="class-names-unreadable"
        ) from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            "The file is neither UTF-8 nor GBK text.",
            where=str(source),
            fix="Save it as UTF-8 text.",
            code="class-names-encoding",
        ) from error
    if encoding == "utf-16":
        message, fix = "The names are UTF-16 text and were read as such.", "Save the file as UTF-8 text."
        result.findings.append(UTF16.at(source.name, message, fix=fix))
    names = [line.strip() for line in text.rstrip().splitlines()]
    twice = [name for name, count in Counter(names).items() if name and count > 1]
    if twice:
        message = f"{', '.join(twice[:5])} is there twice; the first line counts."
        result.findings.append(kinds.NAME_TWICE.at(source.name, message))
    return names


def _number(root: Path, classes: dict[str, _Claim], source: Path | None, result: Converted) -> None:
    """Class names to the line numbers of label.txt or flags.txt."""
    if source is None:
        result.names = sorted({claim.name for claim in classes.values()})
        shown = ", ".join(result.names[:5]) + (", …" if len(result.names) > 5 else "")
        message = f"Neither label.txt nor flags.txt: the {len(result.names)} names are numbered in order: {shown}."
        fix = "Rename labels.txt to label.txt." if (root / "labels.txt").is_file() else "Write label.txt."
        if result.names:
            result.findings.append(kinds.NO_NAMES.at(str(root), message, fix=fix))
    numbers = {name: i for i, name in reversed(list(enumerate(result.names))) if name}
    alike = {name.casefold(): name for name in numbers}
    for image, (name, where, _) in sorted(classes.items()):
        if not is_listable_path(image):
            message = f"{image!r} cannot be written in a list: it is left out."
            result.findings.append(kinds.IMAGE_NAME.at(where, message))
        elif name in numbers:
            result.paths.append(image)
            result.labels.append(numbers[name])
        else:
            file = source.name if source else "the names"
            meant = f"; {alike[name.casefold()]!r} is" if name.casefold() in alike else ""
            message = f"The class {name!r} is not in {file}{meant}: {image} is left out."
            fix = f"If it is a class, add it to {file}; if not, correct the annotation."
            result.findings.append(kinds.UNKNOWN_CLASS.at(where, message, fix=fix))


def _true_flags(holder: Any) -> set[str]:
    flags = holder.get("flags") if isinstance(holder, dict) else None
    return {name.strip() for name, value in flags.items() if value is True} if isinstance(flags, dict) else set()


def _class_of(content: dict[str, Any], names: frozenset[str], unused: Counter[str]) -> str:
    """The one class that an annotation names. Raises UnusableError.

    It is a true flag of the image, else a label of its shapes, else, where the flags of shapes are among the class
    names, one of those: they describe a shape (occluded, difficult) otherwise. Where class names are known, a flag or
    label that is not among them names a class only if nothing else does. `unused` counts the labels passed over.
    """
    given = content.get("shapes")
    shapes = [shape for shape in given if isinstance(shape, dict)] if isinstance(given, list) else []
    labels = {str(shape["label"]).strip() for shape in shapes if shape.get("label") not in (None, "")}
    labels = labels - _NO_CLASS or labels & names
    named = [("flags", _true_flags(content)), ("shapes", labels)]
    attributes = set().union(*map(_true_flags, shapes))
    known = [(origin, found & names) for origin, found in [*named, ("flags of shapes", attributes)]]
    origin, found = next((pair for pair in [*known, *named] if pair[1]), ("", set()))
    if len(found) == 1:
        chosen = found.pop()
        if names and origin == "shapes" and chosen in names:
            unused.update(labels - names)
        return chosen
    if not found:
        raise UnusableError(kinds.NO_CLASS, "No flag is true, and no shape names a class.")
    shown = ", ".join(sorted(found)[:5])
    raise UnusableError(kinds.SEVERAL_CLASSES, f"Its {origin} name {len(found)} classes ({shown}), not one.")


LABELME = ConverterSpec(
    name="LabelMe",
    find_root=find_root,
    convert=convert,
    findings=(*kinds.FINDINGS, UTF16),
    needs="Each annotation needs imagePath, and one true flag or shapes of one label.",
    percents=(50, 30, 20),  # as in PaddleX
)
