"""The images of LabelMe annotations: files found by imagePath, and pictures inside annotations."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

from paddlex_feat.data.converters import labelme_findings as kinds
from paddlex_feat.data.findings import FindingSpec
from paddlex_feat.data.images.decode import decode_bgr
from paddlex_feat.data.images.folders import Walk
from paddlex_feat.data.images.formats import SUFFIXES
from paddlex_feat.data.readers.list_text import decode_list
from paddlex_feat.data.readers.shitu_rec import is_listable_path
from paddlex_feat.errors import DatasetError, ImageError
from paddlex_feat.fileio.atomic import read_result, write_bytes, write_json
from paddlex_feat.fileio.lookup import Lookup
from paddlex_feat.fileio.reading import read_small
from paddlex_feat.fileio.temporary import remove_stale

_MAX_ANNOTATION_BYTES = 2**27  # bytes of a file, which may hold its image
_SUFFIXES = {b"\xff\xd8": ".jpg", b"\x89PNG": ".png", b"RIFF": ".webp", b"GIF8": ".gif", b"BM": ".bmp", b"II": ".tif",
             b"MM": ".tif"}  # fmt: skip
_RECORD = "images/.paddlex_feat.pictures.json"
_MAX_PART_BYTES = 200  # bytes of a folder or file name that is made of an imagePath


class UnusableError(Exception):
    """An annotation without a usable image or class.

    Args:
        kind: the kind of finding that it becomes.
        message: what is wrong.
    """

    def __init__(self, kind: FindingSpec, message: str):
        super().__init__(message)
        self.kind = kind


def read_annotation(path: Path) -> Any:
    """The content of an annotation. Raises UnusableError."""
    try:
        return json.loads(decode_list(read_small(path, _MAX_ANNOTATION_BYTES))[0])
    except OSError as error:
        raise UnusableError(kinds.NOT_JSON, f"The file cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise UnusableError(kinds.NOT_JSON, f"The file is not JSON ({type(error).__name__}).") from None


@dataclass
class Written:
    """The record of what earlier conversions wrote into images/.

    Attributes:
        made: images/ was made for it, so other images are elsewhere.
        pictures: annotation -> the file with its picture, both relative to the root.
    """

    made: bool = False
    pictures: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, root: Path) -> Written:
        """The record in images/; an empty one without it."""
        if not (root / "images").is_dir():
            return cls(made=True)
        content = read_result(root / _RECORD)
        given = content.get("pictures")
        pairs = given.items() if isinstance(given, dict) else ()
        inside = {k: v for k, v in pairs if isinstance(v, str) and v.startswith("images/") and ".." not in v.split("/")}
        return cls(content.get("made") is True, inside)


class Images:
    """The images below a root.

    Attributes:
        files: those that should have an annotation, relative to the root.
        inside: pictures that are inside an annotation and not yet a file: the path that each will have, relative to the
            root, to SHA-256 and annotation.

    Args:
        annotations: the folder that the annotations' own folders are counted from.
        files: the images that should have an annotation. others: more that annotations may name.
    """

    def __init__(self, root: Path, annotations: Path, files: list[Path], others: list[Path], written: Written):
        self._root, self._annotations, self._written = root, annotations, written.pictures
        ours = set(written.pictures.values())
        self.files = {path.relative_to(root).as_posix() for path in files} - ours
        self.inside: dict[str, tuple[str, Path]] = {}
        self._others = {path.relative_to(root).as_posix() for path in others} | ours
        self._lookup = Lookup(root)
        self._by_end: dict[str, list[str]] = {}  # by the last one and the last two components
        for file in sorted(self.files):
            parts = file.split("/")
            for end in {"/".join(parts[-n:]) for n in (1, 2)}:
                self._by_end.setdefault(end, []).append(file)

    def find(self, content: dict[str, Any], annotation: Path) -> tuple[str, bool]:
        """Find the image of an annotation.

        A relative imagePath is taken from the annotation, from the root, from images/ and from the folder there that
        corresponds to the annotation's. Only an absolute one, written on another machine, is searched for by its last
        components. Without such a file, the picture in imageData is used, under a name below images/.

        Args:
            content: of the annotation.
            annotation: its file.

        Returns:
            The path of the image, relative to the root, and whether it is exactly the annotation's imagePath.

        Raises:
            UnusableError: no image is found.
        """
        given, data = content.get("imagePath"), content.get("imageData")
        wanted = given.strip().replace("\\", "/") if isinstance(given, str) and "\0" not in given else ""
        if name := self._exact(wanted, annotation, self.files):
            return name, True
        picture = _Picture(data) if isinstance(data, str) and data.strip() else None
        name = self._written.get(annotation.relative_to(self._root).as_posix())
        if name and picture and picture.is_in(self._root / name):
            return name, False
        if name := self._exact(wanted, annotation, self._others):
            return name, True
        try:
            return self._by_name(given, wanted, annotation), False
        except UnusableError:
            if picture is None:
                raise
            return self._reserve(self._target(wanted, annotation, picture), picture, annotation), False

    def _exact(self, wanted: str, annotation: Path, files: set[str]) -> str | None:
        if not wanted:
            return None
        beside = self._root / "images" / annotation.parent.relative_to(self._annotations)
        folders = (annotation.parent, self._root, self._root / "images", beside)
        relative = (os.path.relpath(os.path.join(folder, wanted), self._root) for folder in folders)
        return next((name for name in relative if name in files), None)

    def _by_name(self, given: Any, wanted: str, annotation: Path) -> str:
        if not wanted:
            raise UnusableError(kinds.NO_IMAGE, "imagePath is missing or not text.")
        if not wanted.startswith("/") and wanted[1:2] != ":":
            folders = (self._root / "images", annotation.parent)
            hints = (self._lookup.explain(os.path.normpath(os.path.join(folder, wanted))) for folder in folders)
            meant = next((h for h in hints if h.startswith("Did you mean") and ".json" not in h), "")
            raise UnusableError(kinds.IMAGE_MISSING, f"There is no image {given!r}. {meant}".rstrip())
        parts = [part for part in wanted.split("/") if part]
        for length in (2, 1):
            alike = self._by_end.get("/".join(parts[-length:]), [])
            if len(alike) == 1:
                return alike[0]
            if alike:
                shown = ", ".join(alike[:3])
                raise UnusableError(kinds.AMBIGUOUS, f"imagePath {given!r} may be any of {shown}.")
        raise UnusableError(kinds.IMAGE_MISSING, f"There is no image {given!r}.")

    def _target(self, wanted: str, annotation: Path, picture: _Picture) -> str:
        """Path of a picture below images/, relative to the root, from its imagePath, which may lead anywhere."""
        below = annotation.parent.relative_to(self._annotations).as_posix()
        images = self._root / "images"
        there = (os.path.relpath(os.path.join(folder, wanted), images) for folder in (annotation.parent, self._root))
        if wanted.startswith("/") or wanted[1:2] == ":":
            parts = wanted.split("/")[-2:]
        else:
            parts = next((path for path in there if wanted and path[:2] != ".."), f"{below}/{wanted}").split("/")
        walk = Walk()
        parts = [p for p in parts if p not in ("", "..") and p[1:] != ":" and not walk.leaves_out(p, "")]
        if (
            not parts
            or not is_listable_path("/".join(parts))
            or max(len(os.fsencode(p)) for p in parts) > _MAX_PART_BYTES
        ):
            parts = [*below.split("/"), annotation.stem]
        target = Path("images", *parts)
        return (
            target if target.suffix.lower() in SUFFIXES else target.with_name(target.name + picture.suffix)
        ).as_posix()

    def _reserve(self, target: str, picture: _Picture, annotation: Path) -> str:
        """Choose the name of a picture that is not a file yet: `target`, with a number if another picture has it."""
        picture.require_image()
        inside, folder = (os.path.join(os.path.realpath(self._root / p), "") for p in ("images", Path(target).parent))
        if not folder.startswith(inside) or not is_listable_path(target):
            message = f"The picture in imageData cannot be written to {target!r}, by a link or by its name."
            raise UnusableError(kinds.IMAGE_DATA, message)
        for name in _names(target):
            if os.path.lexists(self._root / name):
                if picture.is_in(self._root / name):
                    break
            elif self.inside.setdefault(name, (picture.digest, annotation))[0] == picture.digest:
                break
        return name


class _Picture:
    """The picture in imageData, decoded on demand."""

    def __init__(self, text: str):
        self._text = text

    @cached_property
    def data(self) -> bytes:
        """The bytes of an image file; none where the text is not base64."""
        try:
            return base64.b64decode(self._text.rpartition(",")[2])  # after "data:image/png;base64,"
        except ValueError:
            return b""

    @cached_property
    def digest(self) -> str:
        """SHA-256."""
        return sha256(self.data).hexdigest()

    @property
    def suffix(self) -> str:
        """By the content."""
        return next((suffix for begins, suffix in _SUFFIXES.items() if self.data.startswith(begins)), ".png")

    def is_in(self, path: Path) -> bool:
        """Whether the content of a file is exactly this picture."""
        try:
            return path.stat().st_size == len(self.data) and read_small(path, len(self.data)) == self.data
        except OSError:
            return False

    def require_image(self) -> None:
        """Raise UnusableError unless it can be decoded."""
        try:
            decode_bgr(self.data, "imageData")
        except ImageError as error:
            reason = error.what if self.data else "It is not base64."
            message = f"There is no image file, and imageData cannot be used. {reason}"
            raise UnusableError(kinds.IMAGE_DATA, message) from None


def _names(target: str) -> Iterator[str]:
    """Yield names without end: a.jpg, a_2.jpg, a_3.jpg and so on."""
    yield target
    stem, suffix = os.path.splitext(target)
    yield from (f"{stem}_{number}{suffix}" for number in count(2))


def write_pictures(root: Path, inside: dict[str, tuple[str, Path]]) -> None:
    """Write pictures inside annotations to files, none of which exists.

    Args:
        root: the data set's folder.
        inside: `Images.inside`, or some of it.

    Raises:
        DatasetError: the folder has changed since the annotations were read.
        OutputError: a file cannot be written.
    """
    if not inside:
        return
    written = Written.read(root)
    names = {annotation.relative_to(root).as_posix(): name for name, (_, annotation) in inside.items()}
    write_json(root / _RECORD, {"made": written.made, "pictures": {**written.pictures, **names}})
    for folder in {(root / name).parent for name in inside}:
        remove_stale(folder)  # of a conversion that was killed
    for name, (digest, annotation) in inside.items():
        try:
            picture = _Picture(read_annotation(annotation)["imageData"])
            changed = picture.digest != digest
        except (UnusableError, LookupError, TypeError):
            changed = True
        if changed or os.path.lexists(root / name):
            raise DatasetError(
                "The folder changes while it is converted.",
                where=str(annotation),
                fix="Convert again.",
                code="dataset-changes",
            )
        write_bytes(root / name, picture.data, fsync_dir=False)
