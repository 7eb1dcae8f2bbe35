"""Pascal VOC: Annotations/*.xml with the pictures in JPEGImages/; each object is an item of the class of its name.

ImageSets/Main/{train,trainval,val,test}.txt divide the data set, if they are there. Or each file lies beside its
picture, as labelImg writes it, also in folders train, test and the like.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn
from xml.parsers import expat

from paddlex_feat.data.findings import Finding
from paddlex_feat.data.images.formats import SUFFIXES
from paddlex_feat.data.readers import boxes as kinds
from paddlex_feat.data.readers.boxes import Boxes, Pictures, class_name, files_in, folders_of_parts
from paddlex_feat.data.readers.json_stream import reason
from paddlex_feat.data.readers.list_text import MAX_LIST_BYTES, decode_list
from paddlex_feat.data.readers.parts import TRAIN, part_in, part_of
from paddlex_feat.data.readers.spec import ReaderSpec, Reading
from paddlex_feat.fileio.reading import first_bytes, read_small

_FOLDERS = ("Annotations", "annotations")
_IMAGES = ("JPEGImages", "images", "Images")
_LISTS = ("train", "trainval", "val", "test")  # of ImageSets/Main; trainval where there is no train
_MAX_BYTES = 2**24  # of an XML file
_HEAD = 1024
_TRIED = 5  # files that a claim opens
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


class VocError(ValueError):
    """A file is not an annotation of Pascal VOC."""


def _count_lists(folder: Path, names: tuple[str, ...]) -> int:
    return len(names) if _is_apart(folder) or _beside(folder) else 0


def _is_apart(root: Path) -> bool:
    """Whether annotations and pictures have folders of their own."""
    annotations = _folder(root, _FOLDERS)
    return annotations is not None and _folder(root, _IMAGES) is not None and _has_annotations(annotations)


def _beside(root: Path) -> list[Path]:
    """The folders whose annotations lie beside the pictures: the root, or those of parts in it."""
    return [
        folder
        for places in ([root], folders_of_parts(root))
        for folder in places
        if _has_annotations(folder) and _has_pictures(folder)
    ]


def _has_annotations(folder: Path) -> bool:
    return any(map(_looks_like_voc, files_in(folder, ".xml")[:_TRIED]))


def _has_pictures(folder: Path) -> bool:
    return bool(files_in(folder, *SUFFIXES))


def _folder(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)


def _looks_like_voc(file: Path) -> bool:
    try:
        return b"<annotation" in first_bytes(file, _HEAD).replace(b"\0", b"")
    except OSError:
        return False


def _read(root: Path, names: tuple[str, ...], refuse_outside: bool) -> Reading:
    found = Boxes(root)
    beside = [] if _is_apart(root) else _beside(root)
    if beside:
        understood = f"the objects of .xml files beside the images of {', '.join(f.name for f in beside)}"
        return found.reading(_read_beside(beside, found), names, refuse_outside, understood)
    annotations = _folder(root, _FOLDERS) or root / _FOLDERS[0]
    lists = _lists(root)
    understood = f"the objects of {annotations.name}/*.xml"
    if lists:
        understood += f", divided by ImageSets/Main/{' and '.join(f'{name}.txt' for name in lists)}"
    return found.reading(_read_all(annotations, lists, found), names, refuse_outside, understood)


def _lists(root: Path) -> dict[str, Path]:
    """The files that divide the data set, by name."""
    files = {name: root / "ImageSets" / "Main" / f"{name}.txt" for name in _LISTS}
    found = {name: file for name, file in files.items() if file.is_file()}
    if "train" in found:
        found.pop("trainval", None)
    return found


def _read_all(annotations: Path, lists: dict[str, Path], found: Boxes) -> Iterator[Finding]:
    pictures = Pictures(found.root)
    files = {file.stem: file for file in files_in(annotations, ".xml")}
    own = (path for path in sorted(pictures.files) if path.startswith(tuple(f"{name}/" for name in _IMAGES)))
    stems = {path.rpartition("/")[2].rpartition(".")[0]: path for path in own}
    if not lists:
        for file in files.values():
            yield from _read_one(file, None, pictures, stems, found)
        return
    used: set[str] = set()
    for name, listed in lists.items():
        part = TRAIN if name == "trainval" else part_of(name)
        where = listed.relative_to(found.root).as_posix()
        try:
            lines = decode_list(read_small(listed, MAX_LIST_BYTES))[0].splitlines()
        except (OSError, UnicodeDecodeError) as error:
            yield kinds.UNREADABLE.at(where, f"The list cannot be read: {reason(error)}.")
            continue
        for number, line in enumerate(lines, 1):
            stem = line.strip()
            if stem and stem not in files:
                yield kinds.UNUSABLE.at(f"{where}:{number}", f"{annotations.name}/{stem[:200]}.xml does not exist.")
            elif stem:
                used.add(stem)
                yield from _read_one(files[stem], part, pictures, stems, found)
    if rest := len(files.keys() - used):
        found.left_out["annotations of no list"] += rest


def _read_beside(folders: list[Path], found: Boxes) -> Iterator[Finding]:
    pictures = Pictures(found.root)
    for folder in folders:
        place = "" if folder == found.root else f"{folder.name}/"
        own = (path for path in sorted(pictures.files) if path.rpartition("/")[0] == place.rstrip("/"))
        stems = {path[len(place) :].rpartition(".")[0]: path for path in own}
        for file in files_in(folder, ".xml"):
            yield from _read_one(file, part_in(folder.name) if place else None, pictures, stems, found)


def _read_one(
    file: Path, part: str | None, pictures: Pictures, stems: dict[str, str], found: Boxes
) -> Iterator[Finding]:
    where = file.relative_to(found.root).as_posix()
    try:
        annotation = _Annotation(read_small(file, _MAX_BYTES))
    except (OSError, VocError) as error:
        yield kinds.UNREADABLE.at(where, f"The annotation cannot be read: {reason(error)}.")
        return
    # Who renames pictures and annotations together leaves the old name inside.
    image = stems.get(file.stem) or pictures.find(annotation.filename, _IMAGES)
    if image is None:
        yield kinds.NO_IMAGE.at(where, f"The image {annotation.filename[:200] or file.stem} is not found.")
        return
    if not annotation.objects:
        found.left_out["images without boxes"] += 1
    for place, values in enumerate(annotation.objects):
        at, name = f"{where}:object[{place}]", class_name(values.get("name"))
        if name is None or not all(corner in values for corner in _CORNERS):
            yield kinds.UNUSABLE.at(at, "An object needs a name and a bndbox of xmin, ymin, xmax, ymax.")
            continue
        x1, y1, x2, y2 = (_number(values[corner]) for corner in _CORNERS)
        # Pixels are counted from 1, and the last belongs to the box. Programs that count from 0 write 0 for the first.
        corners = (x1 - (x1 != 0), y1 - (y1 != 0), x2, y2)
        if problem := found.add(image, corners, name, at, part, annotation.size):
            yield problem


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


class _Annotation:
    """An XML file of Pascal VOC.

    Expat itself is used, not defusedxml, which would be one more package: without a document type declaration there are
    no entities of a file's own, and a file that has one is refused where it begins.

    Attributes:
        filename: of the picture; "" for none.
        size: (width, height) of the picture; None for none.
        objects: of each, its name and corners, as texts.

    Raises:
        VocError: it is not XML, has a document type declaration, or is not an annotation.
    """

    def __init__(self, data: bytes):
        self.filename = ""
        self.objects: list[dict[str, str]] = []
        self._size: dict[str, str] = {}
        self._path: list[str] = []
        self._text: list[str] = []
        parser = expat.ParserCreate()
        parser.buffer_text = True
        parser.StartDoctypeDeclHandler = _refuse
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._end
        parser.CharacterDataHandler = self._text.append
        try:
            parser.Parse(data, True)
        except VocError:
            raise
        except (expat.ExpatError, ValueError, LookupError) as error:  # the latter two: an unknown encoding
            raise VocError(f"it is not XML ({error})") from None
        self.size = kinds.size_of(*(_number(self._size.get(side, "")) for side in ("width", "height")))

    def _start(self, name: str, _: dict[str, str]) -> None:
        if not self._path and name != "annotation":
            raise VocError(f"its element is {name[:40]}, not annotation")
        self._path.append(name)
        self._text.clear()
        if self._path == ["annotation", "object"]:
            self.objects.append({})

    def _end(self, name: str) -> None:
        path, text = self._path, "".join(self._text).strip()
        depth = len(path)
        if depth == 2 and name == "filename":
            self.filename = text
        elif depth == 3 and path[1] == "size":
            self._size[name] = text
        elif depth > 2 and path[1] == "object":
            if depth == 3 and name == "name":
                self.objects[-1]["name"] = text
            elif depth == 4 and path[2] == "bndbox" and name in _CORNERS:
                self.objects[-1][name] = text
        path.pop()
        self._text.clear()


def _refuse(*_: object) -> NoReturn:
    raise VocError("it has a document type declaration, which may define entities")


VOC = ReaderSpec(
    name="PascalVOC",
    count_lists=_count_lists,
    read=_read,
    files=lambda names: ("Annotations/*.xml and JPEGImages, or .xml files beside images",),
    layout="Pascal VOC: an XML file for each image in Annotations, the images in JPEGImages, lists in ImageSets/Main; "
    "or an XML file beside each image, in one folder or in train, test and the like.",
    findings=kinds.FINDINGS,
)
