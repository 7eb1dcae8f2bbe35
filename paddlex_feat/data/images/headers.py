"""Size and properties of an image by its header."""

from __future__ import annotations

import re
from contextlib import suppress
from mmap import mmap
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from paddlex_feat.data.images.decode import MAX_READ_BYTES
from paddlex_feat.data.images.jpeg import Layout, read_layout
from paddlex_feat.data.images.pillow import open_image
from paddlex_feat.fileio.reading import first_bytes, read_small

_PNM_GREATEST = re.compile(rb"P[2356]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s+(\d+)")
_PNG_BIT_DEPTH = 24  # offset of that byte in a PNG file
_BEGINNING = 2**16  # bytes that hold the header of most files


class Header(NamedTuple):
    """What the header of an image says.

    Attributes:
        width: in pixels, as stored; 0 if unknown.
        height: likewise.
        properties: as in `ImageInfo`.
        orientation: of the EXIF data, 1 to 8.
    """

    width: int = 0
    height: int = 0
    properties: tuple[str, ...] = ()
    orientation: int = 1

    @property
    def upright_size(self) -> tuple[int, int]:
        """(width, height) of the picture, turned as its EXIF data say."""
        return (self.height, self.width) if self.orientation >= 5 else (self.width, self.height)


def jpeg_header(layout: Layout) -> Header:
    """The header of a JPEG."""
    properties = ["cmyk"] if layout.components == 4 else []
    orientation = 1
    if layout.exif:
        with suppress(Exception):  # damaged EXIF data raise nearly anything
            tags = Image.Exif()
            tags.load(layout.exif)
            orientation = _orientation(tags)
    if orientation != 1:
        properties.append("rotated")
    return Header(layout.width, layout.height, tuple(properties), orientation)


def _orientation(tags: Image.Exif) -> int:
    value = tags.get(0x0112, 1)  # any number, or a text
    return value if value in range(1, 9) else 1


def read_header(data: bytes | mmap) -> Header:
    """The header of any image, as Pillow reads it."""
    try:
        with open_image(data) as header:
            properties = []
            if getattr(header, "is_animated", False) and header.format != "MPO":  # a phone's photograph and preview
                properties.append("multi-page" if header.format == "TIFF" else "animated")
            if header.mode == "CMYK":
                properties.append("cmyk")
            if header.mode.startswith("I") or _deep(header, data):
                properties.append("16-bit")
            if header.mode in ("RGBA", "LA", "PA") or "transparency" in header.info:
                properties.append("alpha")
            # Pillow decodes a whole PNG in search of EXIF data that may follow the pixels.
            orientation = _orientation(header.getexif()) if header.format != "PNG" or "exif" in header.info else 1
            if orientation != 1:
                properties.append("rotated")
            return Header(header.width, header.height, tuple(properties), orientation)
    except Exception:  # noqa: BLE001 - damaged headers raise nearly anything; the decoder has the last word
        return Header()


def picture_size(path: Path) -> tuple[int, int] | None:
    """(width, height) of the picture in a file, turned as its EXIF data say, from its header; None if it is damaged.

    Raises OSError, also for what is not a regular file.
    """
    data = first_bytes(path, _BEGINNING)
    size = size_of(data)
    if size is None and len(data) == _BEGINNING:  # a long thumbnail comes first, or it is at the end
        size = size_of(read_small(path, MAX_READ_BYTES))
    return size


def size_of(data: bytes) -> tuple[int, int] | None:
    """(width, height) of the picture in the bytes of a file, as `picture_size` gives it."""
    head = jpeg_header(read_layout(data)) if data[:2] == b"\xff\xd8" else read_header(data)
    return head.upright_size if head.width and head.height else None


def _deep(header: Image.Image, data: bytes | mmap) -> bool:
    """16 bits a channel, where Pillow's mode does not tell."""
    if header.format == "PNG":
        return data[_PNG_BIT_DEPTH] == 16
    if header.format == "TIFF":
        depth = getattr(header, "tag_v2", {}).get(258, 8)  # the tag BitsPerSample
        return bool(max(depth if isinstance(depth, tuple) else (depth,)) > 8)
    greatest = _PNM_GREATEST.match(data[:200]) if header.format == "PPM" else None
    return bool(greatest and int(greatest[1]) > 255)
