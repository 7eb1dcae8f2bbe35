"""Inspect an image: whether it decodes, its size, properties, damage and perceptual hash."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from paddlex_feat.checks.damage import has_converted_line_ends, has_step, hole, tiff_error
from paddlex_feat.checks.measures import measure
from paddlex_feat.checks.phash import appearance_of, grey_of, levels, upright
from paddlex_feat.data.images.decode import MAX_READ_BYTES, OPEN_FLAGS, decode_admitted, first_damage
from paddlex_feat.data.images.formats import ends_early, require_decodable
from paddlex_feat.data.images.headers import Header, jpeg_header, read_header
from paddlex_feat.data.images.jpeg import Layout
from paddlex_feat.data.images.limits import MAX_PIXELS
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.source import ImageSource, box_of, crop
from paddlex_feat.errors import ImageError

# Of a JPEG, not rotated: damage shows in rows of blocks. Brightness alone takes three quarters of the time.
_COLOURS, _GREY = (mode | cv2.IMREAD_IGNORE_ORIENTATION for mode in (cv2.IMREAD_COLOR, cv2.IMREAD_GRAYSCALE))


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is known of an image.

    Attributes:
        error: code of the finding if it cannot be used, such as "image-missing"; "" if it can.
        message: the reason, in words.
        width: in pixels, as stored; of a box, that of the part that is used.
        height: likewise.
        properties: those of "animated", "multi-page", "cmyk", "16-bit", "alpha", "rotated" that apply.
        sha256: SHA-256 of the file as hex, of a box that of its pixels; "" where no other file has its size, so that it
            is unique.
        phash: 640-bit perceptual hash as hex, "" for an image without contrast.
        damage: the sign that its data are damaged, though they decode; "" for undamaged data.
        empty: "blank", "dark" or "bright" for an image that shows next to nothing, else "".
        levels: darkest and brightest level of 255 of such an image, and of one with 16 bits.
        measures: `Measures` of the picture or box; () where it was not decoded.
        picture: (width, height) of the picture that a box is a part of, turned as its EXIF data say; else (0, 0).
    """

    error: str = ""
    message: str = ""
    width: int = 0
    height: int = 0
    properties: tuple[str, ...] = ()
    sha256: str = ""
    phash: str = ""
    damage: str = ""
    empty: str = ""
    levels: tuple[int, ...] = ()
    measures: tuple[float, ...] = ()
    picture: tuple[int, ...] = (0, 0)


def inspect(path: str, hashed: bool = True) -> ImageInfo:
    """Read and decode one image.

    Args:
        path: of its file.
        hashed: compute its SHA-256.
    """
    return inspect_together([path], hashed)[0]


def inspect_together(paths: Sequence[str], hashed: bool = True) -> list[ImageInfo]:
    """Read and decode one picture, and inspect it and boxes of it, as `inspect` does each.

    Args:
        paths: of the picture or boxes of it, at least one.
        hashed: compute the SHA-256 of the picture's content; that of a box is always known.
    """
    data = _read(paths[0])
    if isinstance(data, ImageInfo):
        return [data] * len(paths)
    boxes = [box_of(path) for path in paths]
    whole, image = _inspect_content(data, paths[0], hashed and None in boxes, any(box is not None for box in boxes))
    if image is None:
        return [whole] * len(paths)
    return [whole if box is None else _of_box(path, image, whole) for path, box in zip(paths, boxes, strict=True)]


def _of_box(path: str, image: np.ndarray, whole: ImageInfo) -> ImageInfo:
    """What is known of a box.

    Args:
        path: its source.
        image: the picture, turned as its EXIF data say.
        whole: what is known of the picture.
    """
    box, size = box_of(path), image.shape[1::-1]
    assert box is not None
    try:
        part = crop(image, box, path)
    except ImageError as error:
        return ImageInfo("box-empty", error.what, properties=whole.properties, picture=size)
    content, grey = sha256(repr(part.shape).encode()), grey_of(part)
    content.update(part.data)
    appearance = appearance_of(grey, lambda: part)
    dim = levels(part) if appearance.empty or "16-bit" in whole.properties else ()
    return ImageInfo(
        width=part.shape[1],
        height=part.shape[0],
        properties=whole.properties,
        sha256=content.hexdigest(),
        phash=appearance.phash,
        damage=whole.damage,
        empty=appearance.empty,
        levels=dim,
        measures=measure(grey),
        picture=size,
    )


def _inspect_content(data: bytes, path: str, hashed: bool, colours: bool) -> tuple[ImageInfo, np.ndarray | None]:
    """What is known of a picture, and its pixels, turned as its EXIF data say; None if it has an error.

    colours: the pixels are wanted, uint8 [H, W, 3]; else they may be [H, W].
    """
    said: list[str] = []
    head = None
    try:
        layout = require_decodable(data, path)
        head = jpeg_header(layout) if layout else read_header(data)
        if head.width * head.height > MAX_PIXELS:
            raise ImageError("")
        flags = _GREY if layout and layout.components in (1, 3) and not colours else _COLOURS
        image = decode_admitted(data, path, flags if layout else cv2.IMREAD_COLOR, said)
    except ImageError as error:
        return _undecodable(data, head or read_header(data), error.what), None
    height, width = (head.height, head.width) if head.width else image.shape[:2]
    if layout and ends_early(data):
        return ImageInfo("image-truncated", "The file ends early.", width, height, head.properties), None
    turn = head.orientation if layout else 1  # the other formats' are turned by the decoder
    stored = grey_of(image)
    grey = upright(stored, turn)
    appearance = appearance_of(grey, lambda: image if image.ndim == 3 else decode_admitted(data, path, _COLOURS, said))
    dim = levels(image) if appearance.empty or "16-bit" in head.properties else ()
    content = sha256(data).hexdigest() if hashed else ""
    damage = _damage(data, stored, layout, said)
    look = appearance.phash, damage, appearance.empty, dim, measure(grey)
    return ImageInfo("", "", width, height, head.properties, content, *look), upright(image, turn)


def _read(path: str) -> bytes | ImageInfo:
    """The content of an image file, or the reason why it cannot be read."""
    source = path if isinstance(path, ImageSource) else ImageSource(path, path)
    try:
        handle = os.open(source.file, OPEN_FLAGS)
        try:
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                return ImageInfo("image-is-folder", "The path is a folder, not an image.")
            if not stat.S_ISREG(status.st_mode):
                return ImageInfo("image-unreadable", "The path is a device or a pipe, not a file.")
            size = status.st_size - source.start if source.length is None else source.length
            if size > MAX_READ_BYTES:
                message = f"{size} bytes are more than the {MAX_READ_BYTES} that are read."
                return ImageInfo("image-too-large", message)
            if source.start:
                os.lseek(handle, source.start, os.SEEK_SET)
            data = os.read(handle, max(0, size))
            if source.length is not None and len(data) < size:
                return ImageInfo("image-truncated", "The file ends before the image.")
        finally:
            os.close(handle)
    except (FileNotFoundError, NotADirectoryError):
        return ImageInfo("image-missing", "The file does not exist.")
    except (OSError, ValueError) as error:
        return ImageInfo("image-unreadable", f"The file cannot be read ({getattr(error, 'strerror', error)}).")
    return data or ImageInfo("image-empty", "The file has no bytes.")


def _undecodable(data: bytes, head: Header, message: str) -> ImageInfo:
    """Why an image does not decode."""
    code = "image-undecodable"
    if head.width * head.height > MAX_PIXELS:
        code = "image-too-large"
        message = f"{head.width} x {head.height} pixels are more than the {MAX_PIXELS} that are decoded."
    elif head.width and ends_early(data):
        code, message = "image-truncated", "The file ends early."
    return ImageInfo(code, message, head.width, head.height, head.properties)


def _damage(data: bytes, grey: np.ndarray, layout: Layout | None, said: list[str]) -> str:
    """The sign that parts of a decoded image are wrong, as a clause; "" for an undamaged image.

    Args:
        data: content of the file.
        grey: its brightness, uint8 [H, W], as stored.
        layout: of a JPEG.
        said: the decoder's warnings.
    """
    warning = first_damage("\n".join(said))
    if warning:
        return f"the decoder says: {warning}"
    if layout:
        at = hole(data, layout)
        if at:
            return f"a run of zeros at byte {at}, where an encoder writes none"
        return "brightness jumps within a row of blocks, as after lost bytes" if has_step(grey, layout.mcu) else ""
    if has_converted_line_ends(data):
        return "its line ends were converted, as in a transfer as text"
    error = tiff_error(data) if data[:2] in (b"II", b"MM") else ""
    return f"its data cannot be decompressed: {error}" if error else ""
