"""Inspect an image file: whether it decodes, its size, properties, damage and perceptual hash."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from hashlib import sha256

import numpy as np

from paddlex_feat.checks.damage import has_converted_line_ends, has_step, hole, tiff_error
from paddlex_feat.checks.image_headers import Header, jpeg_header, read_header
from paddlex_feat.checks.phash import appearance_of, levels, upright
from paddlex_feat.data.images.decode import MAX_READ_BYTES, OPEN_FLAGS, decode_admitted, first_damage
from paddlex_feat.data.images.formats import ends_early, require_decodable
from paddlex_feat.data.images.jpeg import Layout
from paddlex_feat.data.images.limits import MAX_PIXELS
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.errors import ImageError

_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # not rotated: damage shows in rows of blocks


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """What is known of an image file.

    Attributes:
        error: code of the finding if it cannot be used, such as "image-missing"; "" if it can.
        message: the reason, in words.
        width: in pixels, as stored.
        height: likewise.
        properties: those of "animated", "multi-page", "cmyk", "16-bit", "alpha", "rotated" that apply.
        sha256: SHA-256 of the file as hex; "" where no other file has its size, so that it is unique.
        phash: 640-bit perceptual hash as hex, "" for an image without contrast.
        damage: the sign that its data are damaged, though they decode; "" for undamaged data.
        empty: "blank", "dark" or "bright" for an image that shows next to nothing, else "".
        levels: darkest and brightest level of 255 of such an image, and of one with 16 bits.
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


def inspect(path: str, hashed: bool = True) -> ImageInfo:
    """Read and decode one file.

    Args:
        path: of the file.
        hashed: compute its SHA-256.
    """
    data = _read(path)
    if isinstance(data, ImageInfo):
        return data
    said: list[str] = []
    head = None
    try:
        layout = require_decodable(data, path)
        head = jpeg_header(layout) if layout else read_header(data)
        if head.width * head.height > MAX_PIXELS:
            raise ImageError("")
        image = decode_admitted(data, path, _AS_STORED if layout else cv2.IMREAD_COLOR, said)
    except ImageError as error:
        return _undecodable(data, head or read_header(data), error.what)
    height, width = (head.height, head.width) if head.width else image.shape[:2]
    if layout and ends_early(data):
        return ImageInfo("image-truncated", "The file ends early.", width, height, head.properties)
    appearance = appearance_of(upright(image, head.orientation) if layout else image)
    dim = levels(image) if appearance.empty or "16-bit" in head.properties else ()
    content = sha256(data).hexdigest() if hashed else ""
    damage = _damage(data, image, layout, said)
    return ImageInfo("", "", width, height, head.properties, content, appearance.phash, damage, appearance.empty, dim)


def _read(path: str) -> bytes | ImageInfo:
    """The content of an image file, or the reason why it cannot be read."""
    try:
        handle = os.open(path, OPEN_FLAGS)
        try:
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                return ImageInfo("image-is-folder", "The path is a folder, not an image.")
            if not stat.S_ISREG(status.st_mode):
                return ImageInfo("image-unreadable", "The path is a device or a pipe, not a file.")
            if status.st_size > MAX_READ_BYTES:
                message = f"{status.st_size} bytes are more than the {MAX_READ_BYTES} that are read."
                return ImageInfo("image-too-large", message)
            data = os.read(handle, status.st_size)
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


def _damage(data: bytes, image: np.ndarray, layout: Layout | None, said: list[str]) -> str:
    """The sign that parts of a decoded image are wrong, as a clause; "" for an undamaged image.

    Args:
        data: content of the file.
        image: its pixels.
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
        return "brightness jumps within a row of blocks, as after lost bytes" if has_step(image, layout.mcu) else ""
    if has_converted_line_ends(data):
        return "its line ends were converted, as in a transfer as text"
    error = tiff_error(data) if data[:2] in (b"II", b"MM") else ""
    return f"its data cannot be decompressed: {error}" if error else ""
