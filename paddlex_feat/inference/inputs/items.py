"""The inputs of `predict` as one stream of images."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
from PIL import Image

from paddlex_feat.data.images import tiff
from paddlex_feat.data.images.decode import MAX_FILE_BYTES, IsLargeEnough, decode_bgr, read_bgr
from paddlex_feat.data.images.formats import BEGINNING, SUFFIXES, looks_like_image
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.source import Box, ImageSource, crop
from paddlex_feat.data.readers.tar_index import IMAGE_SUFFIXES, Damaged, members
from paddlex_feat.errors import DownloadError, ImageError
from paddlex_feat.fileio.reading import first_bytes
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.hub.fetch import fetch_url
from paddlex_feat.hub.urls import is_url, without_password
from paddlex_feat.inference.inputs.paths import Search, images_of, is_shard
from paddlex_feat.inference.inputs.pixels import bgr_of_array, bgr_of_pil, unusable_pil
from paddlex_feat.inference.inputs.texts import ACCEPTED, cut

Resize = Callable[[np.ndarray], np.ndarray]
_MAX_DEPTH = 100  # lists in lists; Python's recursion limit is not far above


class InputIteratorError(Exception):
    """An iterator among the inputs raised `error`, and has ended."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Item:
    """One image: where it comes from, and how to get its pixels.

    Attributes:
        input_path: path, or URL without user and password; None for arrays and PIL images.
        location: place in the input of `predict`, such as "input[3]"; "input" if it is the input itself;
            file:line if a text file names it.
        source: path, URL, array, PIL image, bytes of an image file, or an exception in place of the image.
        page_index: from 0, of a file with several pages.
        offset: position of that page's directory in the file, in bytes.
        folder: temporary folder of a downloaded file, kept until its last page is read.
        box: the part of the picture that is meant; None: all of it.
        element: number of the element of the input's outermost list or iterator that it comes from; 0 without one.
    """

    input_path: str | None
    location: str
    source: Any
    page_index: int | None = None
    offset: int = 0
    folder: TemporaryFolder | None = None
    box: Box | None = None
    element: int = 0

    @property
    def name(self) -> str:
        """The path, or else the location, with page and box; for error messages."""
        page = "" if self.page_index is None else f" page {self.page_index}"
        box = "" if self.box is None else f" box {self.box}"
        return f"{self.input_path or self.location}{page}{box}"

    @property
    def line(self) -> str:
        """file:line of the text file that names it, "" for other inputs."""
        return self.location if re.search(r":\d+$", self.location) else ""

    def load(
        self, resize: Resize, enough: IsLargeEnough | None = None, cancel: threading.Event | None = None
    ) -> np.ndarray:
        """Decode the image as `decode` does, with its errors, and reduce it.

        Args:
            resize: reduces the decoded image, uint8 [H, W, 3] -> uint8 [h, w, 3].
            enough: as for `decode`.
            cancel: as for `decode`.

        Returns uint8 [h, w, 3], RGB.
        """
        # Colours are converted last, on the small image, as evaluation does.
        return cv2.cvtColor(resize(self.decode(enough, cancel)), cv2.COLOR_BGR2RGB)

    def decode(self, enough: IsLargeEnough | None = None, cancel: threading.Event | None = None) -> np.ndarray:
        """Decode the image.

        Args:
            enough: see data.images.decode.decode_bgr.
            cancel: a download is given up once it is set.

        Returns uint8 [H, W, 3], BGR. Raises ImageError, DownloadError, or the exception in place of the image.
        """
        if isinstance(self.source, Exception):
            raise self.source
        if isinstance(self.source, np.ndarray):
            image = bgr_of_array(self.source, self.location)
        elif isinstance(self.source, Image.Image):
            image = bgr_of_pil(self.source, self.location)
        elif isinstance(self.source, bytes):
            image = decode_bgr(self.source, _where(self.name, self.location), enough)
        elif self.page_index is not None:
            image = tiff.read_page(self.source, self.offset, _where(self.name, self.location))
        else:
            image = self._read(None if self.box else enough, cancel)
        if self.box is not None:
            image = crop(image, self.box, _where(self.name, self.location))
        return image

    def _read(self, enough: IsLargeEnough | None, cancel: threading.Event | None) -> np.ndarray:
        remote = is_url(self.source) and not isinstance(self.source, ImageSource)
        folder, path = _download(self.source, cancel) if remote else (None, self.source)
        try:
            return read_bgr(path, enough)
        except ImageError as error:
            suffix, fix = Path(path).suffix.lower(), error.fix
            if suffix not in SUFFIXES and not _begins_as_image(path):
                fix = f"{suffix or 'A name without suffix'} is not an image; give {ACCEPTED}."
            raise ImageError(error.what, where=_where(self.name, self.location), fix=fix, code=error.code) from error
        finally:
            if folder is not None:
                folder.close()


def _begins_as_image(path: str) -> bool:
    with suppress(OSError):
        return looks_like_image(first_bytes(Path(path), BEGINNING))
    return False


def _download(url: str, cancel: threading.Event | None = None) -> tuple[TemporaryFolder, str]:
    """Download a file into a temporary folder; returns the folder and the file's path."""
    folder = TemporaryFolder()
    fix = "Check the address, or download the image and give its path."
    try:
        return folder, str(fetch_url(url, str(folder.path), fix, max_bytes=MAX_FILE_BYTES, cancel=cancel))
    except BaseException:  # the error may be kept long, and with it the folder, which holds a file descriptor
        folder.close()
        raise


def _where(name: str, location: str) -> str:
    return name if location in ("input", name) else f"{name} ({location})"


def iter_images(source: Any, search: Search | None = None, location: str = "input") -> Iterator[Item]:
    """All images of an input, in order; folders recursively, sorted by path. Never raises an Exception.

    An Item with an ImageError stands for anything that is not in ACCEPTED, a path that does not exist, and a folder
    without images. An iterator that raises ends the stream with an Item that holds an InputIteratorError.

    Args:
        source: see `Predictor.predict`.
        search: counts what is left out of folders.
        location: name of the input in messages.
    """
    return _Reader(search or Search()).read(source, location, ())


def is_slow_source(source: Any, depth: int = 0) -> bool:
    """Whether the next image may take long: a URL, or an iterator, which makes its elements when asked."""
    if depth > _MAX_DEPTH:  # an error, which `iter_images` reports
        return True
    if isinstance(source, dict):
        return is_slow_source(source.get("img"), depth + 1)
    if isinstance(source, (list, tuple)):
        return any(is_slow_source(element, depth + 1) for element in source)
    if isinstance(source, (str, os.PathLike)):
        return is_url(os.fsdecode(source))
    return not isinstance(source, (np.ndarray, Image.Image)) and _is_stream(source)


def _is_stream(source: Any) -> bool:
    return isinstance(source, Iterable) and getattr(source, "ndim", 1) == 1 and not _is_file(source)


def _is_file(source: Any) -> bool:
    """Bytes, or an open file, also as wrapped by tempfile: iterating one would give lines."""
    return isinstance(source, (bytes, bytearray, memoryview)) or isinstance(getattr(source, "file", source), io.IOBase)


_Handler = Callable[[Any, str, tuple[int, ...]], Iterator[Item]]


class _Reader:
    """Reads inputs of every kind; `_handler` is the table of kinds.

    Each handler takes the input, its location, and `parents`: ids of the lists and dicts that contain the input.
    """

    def __init__(self, search: Search):
        self._search = search
        # The first kind that fits counts. Arrays and texts are iterable too, so streams come last.
        self._handlers: list[tuple[Callable[[Any], bool], _Handler]] = [
            (_is_a(Item), lambda source, location, parents: iter((source,))),
            (_is_a(ImageSource), self._source),
            (_is_a(np.ndarray), self._array),
            (_is_a(Image.Image), self._pil),
            (_is_a(str, os.PathLike), self._text),
            (_is_a(dict), self._dict),
            (_is_file, self._file),
            (_is_stream, self._stream),
        ]

    def read(self, source: Any, location: str, parents: tuple[int, ...]) -> Iterator[Item]:
        """The images of an input."""
        if id(source) in parents or len(parents) > _MAX_DEPTH:
            what = f"The input is nested in itself, or in more than {_MAX_DEPTH} others."
            yield _failed(what, f"input, {len(parents)} deep", "Give a flat list.", "input-nested")
            return
        for fits, handler in self._handlers:
            if fits(source):
                yield from handler(source, location, (*parents, id(source)))
                return
        yield _failed(_not_accepted(source), location, f"Give {ACCEPTED}.", "input-type")

    def _source(self, source: ImageSource, location: str, parents: tuple[int, ...]) -> Iterator[Item]:
        if source.length is None:  # a file of its own, or a part of one
            yield Item(source.file, location, source.file, box=source.box)
        else:
            yield Item(str(source), location, source)

    def _array(self, source: np.ndarray, location: str, parents: tuple[int, ...]) -> Iterator[Item]:
        yield Item(None, location, source)

    def _pil(self, source: Image.Image, location: str, parents: tuple[int, ...]) -> Iterator[Item]:
        try:
            # The current frame of an animation: the caller may move to another before it is read.
            yield Item(None, location, source.copy() if getattr(source, "is_animated", False) else source)
        except Exception as error:  # noqa: BLE001 - Pillow reads the file now: any exception of its decoders
            yield Item(None, location, unusable_pil(error, location))

    def _text(self, source: str | os.PathLike[str], location: str, parents: tuple[int, ...]) -> Iterator[Item]:
        for found in images_of(os.fsdecode(source), self._search):
            place = found.line or location
            if found.what:
                yield _failed(found.what, place, found.fix, "input-unusable", found.path)
            elif is_url(found.path):
                yield from _url_items(found.path, place)
            elif is_shard(found.path):
                yield from _shard(found.path, place, self._search)
            else:
                yield from _pages(found.path, place, found.path)

    def _dict(self, source: dict[Any, Any], location: str, parents: tuple[int, ...]) -> Iterator[Item]:
        if "img" not in source:
            what = f"A dict input needs the key 'img'; it has {cut(str(sorted(map(str, source))))}."
            yield _failed(what, location, "Give {'img': image}.", "input-dict")
            return
        boxes = _boxes(source)
        if boxes is None:
            given = cut(str(source.get("box", source.get("boxes"))))
            what = f"The box is {given}, not x1, y1, x2, y2 with x1 < x2 and y1 < y2."
            yield _failed(what, location, "Give {'img': image, 'box': [x1, y1, x2, y2]} in pixels.", "input-box")
            return
        for item in self.read(source["img"], location, parents):
            if isinstance(item.source, Exception) or not boxes:
                yield item
            else:
                yield from (replace(item, box=box) for box in boxes)

    def _file(self, source: Any, location: str, parents: tuple[int, ...]) -> Iterator[Item]:
        fix = "Give the file's path, or the array that cv2.imdecode makes of its bytes."
        yield _failed(_not_accepted(source), location, fix, "input-type")

    def _stream(self, source: Iterable[Any], location: str, parents: tuple[int, ...]) -> Iterator[Item]:
        number = 0
        try:
            for element in source:
                items = self.read(element, f"{location}[{number}]", parents)
                yield from items if len(parents) > 1 else (replace(item, element=number) for item in items)
                number += 1
        except Exception as error:  # noqa: BLE001 - the caller's own; `Predictor` raises it after the results before it
            yield Item(None, f"{location}[{number}]", InputIteratorError(error))


def _boxes(source: dict[Any, Any]) -> list[Box] | None:
    """The boxes of a dict input: one in "box", or any number of them there or in "boxes"; None if one is wrong."""
    given = source.get("box", source.get("boxes"))
    if given is None:
        return []
    try:
        rows = np.asarray(given, np.float64)
    except (TypeError, ValueError, OverflowError):
        return None
    rows = rows[None] if rows.ndim == 1 else rows
    fits = rows.ndim == 2 and rows.shape[1] == 4 and np.isfinite(rows).all() and np.abs(rows).max(initial=0) < 1e9
    if not fits or not len(rows) or not (rows[:, :2] < rows[:, 2:]).all():
        return None
    return [Box(*row) for row in rows.tolist()]


def _is_a(*kinds: type) -> Callable[[Any], bool]:
    return lambda source: isinstance(source, kinds)


def _not_accepted(source: Any) -> str:
    return f"Inputs of type {type(source).__name__} are not accepted."


def _failed(what: str, location: str, fix: str, code: str, path: str | None = None) -> Item:
    """An item that holds an ImageError."""
    return Item(path, location, ImageError(what, where=_where(path or location, location), fix=fix, code=code))


def _shard(path: str, location: str, search: Search) -> Iterator[Item]:
    """The images of a tar shard, in their order; `search` counts its other members, except those with a class."""
    there = False
    try:
        for member, label in members(Path(path)):
            suffix = Path(member.name).suffix.lower()
            if not member.isdir() and (not member.isreg() or member.issparse()):
                search.left_out["links, devices and sparse files of shards"] += 1
            elif member.isreg() and suffix[1:] not in IMAGE_SUFFIXES and label is None:
                search.left_out[f"{suffix or 'other'} files of shards"] += 1
            elif member.isreg() and suffix[1:] in IMAGE_SUFFIXES:
                there = True
                source = ImageSource(f"{path}/{member.name}", path, member.offset_data, member.size)
                yield Item(str(source), location, source)
        problem = "" if there else "it holds no image"
    except Damaged as error:
        problem = str(error)
    except OSError as error:
        problem = str(error.strerror or error)
    if problem:
        fix = "Copy or make the shard again."
        yield _failed(f"The tar shard cannot be used: {problem}.", location, fix, "input-shard", path)


def _url_items(url: str, location: str) -> Iterator[Item]:
    shown = without_password(url)
    try:
        if Path(urlparse(url).path).suffix.lower() not in tiff.SUFFIXES:
            yield Item(shown, location, url)
            return
        folder, local = _download(url)  # now: only the file tells how many pages it has
    except ValueError as error:
        what = f"This is not a valid address ({without_password(str(error))})."
        yield _failed(what, location, f"Give {ACCEPTED}.", "address-invalid", shown)
    except DownloadError as error:
        yield Item(shown, location, error)
    else:
        yield from _pages(shown, location, local, folder)


def _pages(name: str, location: str, path: str, folder: TemporaryFolder | None = None) -> Iterator[Item]:
    """One item for each page of a TIFF file; any other file is one item."""
    offsets = tiff.page_offsets(path) if Path(path).suffix.lower() in tiff.SUFFIXES else []
    if len(offsets) < 2:
        yield Item(name, location, path, folder=folder)
        return
    for index, offset in enumerate(offsets):
        yield Item(name, location, path, index, offset, folder)
