"""What `predict` accepts, as one stream of images."""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import cv2
import numpy as np
from PIL import Image, ImageOps

from paddlex_feat import MOST_PIXELS
from paddlex_feat.data.images import tiff
from paddlex_feat.data.images.decode import MOST_BYTES, SUFFIXES, SizeTest, read_bgr
from paddlex_feat.data.images.formats import BEGINNING, looks_like_image
from paddlex_feat.errors import DownloadError, ImageError
from paddlex_feat.fileio.reading import first_bytes
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.hub.fetch import fetch_url
from paddlex_feat.hub.urls import is_url, without_password
from paddlex_feat.inference.input_paths import Search, images_of
from paddlex_feat.inference.input_texts import ACCEPTED, cut

Resize = Callable[[np.ndarray], np.ndarray]
_CODES = {1: cv2.COLOR_GRAY2BGR, 4: cv2.COLOR_BGRA2BGR}  # by the number of channels
_DEEPEST = 100  # lists in lists; Python's own limit of calls is not far above
_pillow = threading.Lock()  # one PIL image, given twice, must not be loaded by two threads at once


class StreamFault(Exception):
    """An iterator among the inputs raised `error`, and has ended."""

    def __init__(self, error: Exception):
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True)
class Item:
    """One image: where it comes from, and how to get its pixels.

    Attributes:
        input_path: path, or URL without user and password; None where there is none.
        position: where it stands in what `predict` was given, as in "input[3]"; "input" if it is that itself;
            file:line if a text file names it.
        source: path, URL, array, PIL image, or the StreamFault that stands in the image's place.
        page_index: from 0, of a file with several pages.
        offset: where that page's directory stands in the file.
        folder: what keeps a fetched file until its last page is read.
    """

    input_path: str | None
    position: str
    source: Any
    page_index: int | None = None
    offset: int = 0
    folder: TemporaryFolder | None = None

    @property
    def name(self) -> str:
        """What an error calls it: the path, or else the position, with the page."""
        page = "" if self.page_index is None else f" page {self.page_index}"
        return f"{self.input_path or self.position}{page}"

    @property
    def line(self) -> str:
        """file:line of the text file that names it, "" for other inputs."""
        return self.position if re.search(r":\d+$", self.position) else ""

    def load(
        self, resize: Resize, is_large_enough: SizeTest | None = None, cancel: threading.Event | None = None
    ) -> np.ndarray:
        """uint8 [H, W, 3], RGB, made smaller by `resize`; `is_large_enough` as for pipeline.decode.decode_bgr.

        A download is given up once `cancel` is set. Raises ImageError or
        DownloadError, or the StreamFault that stands in the image's place.
        """
        if isinstance(self.source, Exception):
            raise self.source
        if isinstance(self.source, np.ndarray):
            image = _bgr_of_array(self.source, self.position)
        elif isinstance(self.source, Image.Image):
            image = _bgr_of_pil(self.source, self.position)
        elif self.page_index is not None:
            image = tiff.read_page(self.source, self.offset, _where(self.name, self.position))
        else:
            image = self._read(is_large_enough, cancel)
        # The colours are exchanged last, on the small image, as evaluation does.
        return cv2.cvtColor(resize(image), cv2.COLOR_BGR2RGB)

    def _read(self, is_large_enough: SizeTest | None, cancel: threading.Event | None) -> np.ndarray:
        folder, path = _fetched(self.source, cancel) if is_url(self.source) else (None, self.source)
        try:
            return read_bgr(path, is_large_enough)
        except ImageError as error:
            suffix, fix = Path(path).suffix.lower(), error.fix
            if suffix not in SUFFIXES and not _begins_as_image(path):
                fix = f"{suffix or 'A name without suffix'} is not an image; give {ACCEPTED}."
            raise ImageError(error.what, where=_where(self.name, self.position), fix=fix) from error
        finally:
            if folder is not None:
                folder.close()


def _begins_as_image(path: str) -> bool:
    with suppress(OSError):
        return looks_like_image(first_bytes(Path(path), BEGINNING))
    return False


def _fetched(url: str, cancel: threading.Event | None = None) -> tuple[TemporaryFolder, str]:
    """A copy of what is behind the address now, and the folder of its own that goes with it."""
    folder = TemporaryFolder()
    fix = "Check the address, or download the image and give its path."
    try:
        return folder, str(fetch_url(url, str(folder.path), fix, max_bytes=MOST_BYTES, cancel=cancel))
    except BaseException:  # the error may be kept long, and the folder with it, which holds a file descriptor
        folder.close()
        raise


def _where(name: str, position: str) -> str:
    return name if position in ("input", name) else f"{name} ({position})"


def _require_size(width: int, height: int, position: str) -> None:
    if width * height > MOST_PIXELS:
        raise ImageError(
            f"The image has {width} x {height} pixels, more than {MOST_PIXELS}.", where=position, fix="Make it smaller."
        )


def _bgr_of_array(array: np.ndarray, position: str) -> np.ndarray:
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if array.ndim == 4 or array.dtype.kind in "OU":
        what = f"An array of shape {array.shape} and type {array.dtype} is not one image."
        raise ImageError(what, where=position, fix="Where it holds several inputs, give list(array).")
    if array.dtype != np.uint8 or channels not in (1, 3, 4) or not array.size:
        raise ImageError(
            f"An array of shape {array.shape} and type {array.dtype} is no image.",
            where=position,
            fix="Give uint8 [H, W, 3] in BGR order, [H, W, 4] in BGRA order, or [H, W] in grey.",
        )
    _require_size(array.shape[1], array.shape[0], position)
    array = np.ascontiguousarray(array)
    return array if channels == 3 else cv2.cvtColor(array, _CODES[channels])


def _bgr_of_pil(image: Image.Image, position: str) -> np.ndarray:
    """As OpenCV reads such a file: EXIF rotation applied, alpha dropped, 16 bits reduced to the upper 8."""
    _require_size(*image.size, position)
    try:
        with _pillow:
            if image.mode == "F":
                raise ValueError("mode F has no range that means black and white; convert it to L or RGB")
            upright = ImageOps.exif_transpose(image)
            if upright.mode == "La":  # grey times alpha, which Pillow converts in two steps alone
                upright = upright.convert("LA")
            if upright.mode.startswith("I"):
                grey = np.clip(np.asarray(upright), 0, 2**16 - 1) >> 8
                return cv2.cvtColor(grey.astype(np.uint8), cv2.COLOR_GRAY2BGR)
            return cv2.cvtColor(np.asarray(upright.convert("RGB")), cv2.COLOR_RGB2BGR)
    except Exception as error:  # Pillow opens a file first and reads it now: any of its decoders' exceptions
        raise ImageError(
            f"The PIL image cannot be used ({type(error).__name__}: {error}).", where=position, fix="Replace it."
        ) from error


def items(source: Any, search: Search | None = None) -> Iterator[Item]:
    """All images of an input, in order; folders recursively, sorted by path. Never raises an Exception.

    In the place of what is nothing of ACCEPTED, of a path that does not exist or of a folder without images
    stands an Item that holds an ImageError. An iterator that raises ends the stream with an Item that
    holds a StreamFault. `search` counts what is left out of folders.
    """
    return _items(source, "input", (), search or Search())


def _items(source: Any, position: str, within: tuple[int, ...], search: Search) -> Iterator[Item]:
    """`within`: the ids of the lists and dicts that the source stands in."""
    if id(source) in within or len(within) > _DEEPEST:
        what = f"The input is nested in itself, or in more than {_DEEPEST} others."
        yield _fault(what, f"input, {len(within)} deep", "Give a flat list.")
    elif isinstance(source, np.ndarray):
        yield Item(None, position, source)
    elif isinstance(source, Image.Image):
        yield _pil_item(source, position)
    elif isinstance(source, (str, os.PathLike)):
        yield from _text_items(os.fsdecode(source), position, search)
    elif isinstance(source, dict) and "img" in source:
        yield from _items(source["img"], position, (*within, id(source)), search)
    elif isinstance(source, dict):
        what = f"A dict input needs the key 'img'; it has {cut(str(sorted(map(str, source))))}."
        yield _fault(what, position, "Give {'img': image}.")
    elif _is_file(source):
        what = f"An input of type {type(source).__name__} is not understood."
        yield _fault(what, position, "Give the file's path, or the array that cv2.imdecode makes of its bytes.")
    elif _is_stream(source):
        yield from _elements(source, position, (*within, id(source)), search)
    else:
        yield _fault(f"An input of type {type(source).__name__} is not understood.", position, f"Give {ACCEPTED}.")


def may_wait(source: Any, depth: int = 0) -> bool:
    """Whether an image may be long in coming: of a URL, or of what makes its elements when asked, as an iterator."""
    if depth > _DEEPEST:  # an error, which `items` gives
        return True
    if isinstance(source, dict):
        return may_wait(source.get("img"), depth + 1)
    if isinstance(source, (list, tuple)):
        return any(may_wait(element, depth + 1) for element in source)
    if isinstance(source, (str, os.PathLike)):
        return is_url(os.fsdecode(source))
    return not isinstance(source, (np.ndarray, Image.Image)) and _is_stream(source)


def _is_stream(source: Any) -> bool:
    return isinstance(source, Iterable) and getattr(source, "ndim", 1) == 1 and not _is_file(source)


def _is_file(source: Any) -> bool:
    """Bytes, or an open file, also as tempfile wraps it: as an iterator it would give lines."""
    return isinstance(source, (bytes, bytearray, memoryview)) or isinstance(getattr(source, "file", source), io.IOBase)


def _pil_item(image: Image.Image, position: str) -> Item:
    try:
        # Of an animation the frame that it stands at now: the caller may move on before it is read.
        return Item(None, position, image.copy() if getattr(image, "is_animated", False) else image)
    except Exception as error:  # noqa: BLE001 - Pillow reads the file now: any of its decoders' exceptions
        return _fault(f"The PIL image cannot be used ({type(error).__name__}: {error}).", position, "Replace it.")


def _elements(source: Iterable[Any], position: str, within: tuple[int, ...], search: Search) -> Iterator[Item]:
    number = 0
    try:
        elements = iter(source)
        while True:
            try:
                element = next(elements)
            except StopIteration:
                return
            yield from _items(element, f"{position}[{number}]", within, search)
            number += 1
    except Exception as error:  # noqa: BLE001 - the caller's own, raised by Item.load after the results before it
        yield Item(None, f"{position}[{number}]", StreamFault(error))


def _fault(what: str, position: str, fix: str, path: str | None = None) -> Item:
    return Item(path, position, ImageError(what, where=_where(path or position, position), fix=fix))


def _url_items(url: str, position: str) -> Iterator[Item]:
    shown = without_password(url)
    try:
        if Path(urlparse(url).path).suffix.lower() not in tiff.SUFFIXES:
            yield Item(shown, position, url)
            return
        folder, local = _fetched(url)  # now, for only the file tells how many pages there are
    except ValueError as error:
        what = f"This is no address ({without_password(str(error))})."
        yield _fault(what, position, f"Give {ACCEPTED}.", shown)
    except DownloadError as error:
        yield Item(shown, position, error)
    else:
        yield from _pages(shown, position, local, folder)


def _text_items(text: str, position: str, search: Search) -> Iterator[Item]:
    for found in images_of(text, search):
        place = found.line or position
        if found.what:
            yield _fault(found.what, place, found.fix, found.path)
        elif is_url(found.path):
            yield from _url_items(found.path, place)
        else:
            yield from _pages(found.path, place, found.path)


def _pages(name: str, position: str, path: str, folder: TemporaryFolder | None = None) -> Iterator[Item]:
    """The pages of a TIFF file; any other file as it is."""
    offsets = tiff.page_offsets(path) if Path(path).suffix.lower() in tiff.SUFFIXES else []
    if len(offsets) < 2:
        yield Item(name, position, path, folder=folder)
    for index, offset in enumerate(offsets if len(offsets) > 1 else []):
        yield Item(name, position, path, index, offset, folder)
