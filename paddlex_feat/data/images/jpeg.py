"""The structure of a JPEG file: its segments and scans (ITU-T T.81, annex B), read without decoding."""

from __future__ import annotations

import re
from collections.abc import Iterator
from mmap import mmap
from typing import NamedTuple

# All markers with a length; restart markers and stuffed bytes (FF 00) belong to the data of a scan.
_MARKER = re.compile(rb"\xff[^\0\xff\x01\xd0-\xd8]")
_END, _SCAN, _HUFFMAN_TABLES, _APP1 = 0xD9, 0xDA, 0xC4, 0xE1
_EXIF = b"Exif\0\0"
MAX_SCANS = 500  # that are counted


class Layout(NamedTuple):
    """The content of a JPEG's segments, as far as it is needed.

    Attributes:
        width: of the first frame header, in pixels; 0 without one.
        height: likewise.
        components: likewise, the number of channels.
        scans: number of scans, at most MAX_SCANS + 1.
        pixels: of the largest frame header.
        first_scan: offset of the entropy-coded data of the first scan; 0 if there is none.
        mcu: (width, height) in pixels of a minimum coded unit of the only scan; (0, 0) for several scans, and for
            other than sequential Huffman coding.
        zeros_are_flat: zero bits are the code of an end-of-block in the luminance table, so that a long run of them
            is a flat area.
        exif: the EXIF data, without their identifier; empty if there are none.
    """

    width: int
    height: int
    components: int
    scans: int
    pixels: int
    first_scan: int
    mcu: tuple[int, int]
    zeros_are_flat: bool
    exif: bytes


def read_layout(data: bytes | mmap) -> Layout:
    """The layout of a JPEG file, as far as its markers can be followed."""
    size, scans, pixels, first_scan, mcu, flat, exif = (0, 0, 0), 0, 0, 0, (0, 0), False, b""
    for marker, at in _markers(data):
        length = int.from_bytes(data[at : at + 2], "big")
        if marker == _SCAN:
            scans += 1
            first_scan = first_scan or at + length
            mcu = mcu if scans == 1 and data[at + 2 : at + 3] == bytes(size[2:]) else (0, 0)
            if mcu != (0, 0):  # it has all components, and libjpeg reads no other scan
                break
        elif marker == _HUFFMAN_TABLES:
            flat |= not scans and _zeros_end_blocks(data[at + 2 : at + length])
        elif marker == _APP1 and data[at + 2 : at + 8] == _EXIF:
            exif = exif or data[at + 8 : at + length]
        elif _is_frame(marker):
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (3, 5))
            pixels = max(pixels, width * height)
            if size == (0, 0, 0):
                size = (width, height, int.from_bytes(data[at + 7 : at + 8], "big"))
                mcu = _mcu(data[at : at + length]) if marker in (0xC0, 0xC1) else (0, 0)
    return Layout(*size, scans, pixels, first_scan, mcu, flat, exif)


def end_of_image(data: bytes | mmap) -> int:
    """Offset after the end-of-image marker; 0 without one."""
    return next((at for marker, at in _markers(data) if marker == _END), 0)


def _markers(data: bytes | mmap) -> Iterator[tuple[int, int]]:
    """(marker, offset after it) up to the end of the image, or to one scan more than MAX_SCANS."""
    at, scans = 2, 0
    while scans <= MAX_SCANS and (found := _MARKER.search(data, at)):
        marker, at = data[found.start() + 1], found.end()
        yield marker, at
        if marker == _END:
            return
        at += int.from_bytes(data[at : at + 2], "big")
        scans += marker == _SCAN


def _is_frame(marker: int) -> bool:
    return 0xC0 <= marker <= 0xCF and marker not in (_HUFFMAN_TABLES, 0xC8, 0xCC)  # tables share the range


def _mcu(frame: bytes) -> tuple[int, int]:
    """Size in pixels of a minimum coded unit, from a frame header without its marker (B.2.2, A.2)."""
    factors = frame[9 : 8 + 3 * frame[7] : 3] if len(frame) > 7 else b""
    if len(factors) < 2:  # a single component is not interleaved, whatever its sampling factors
        return (8, 8) if factors else (0, 0)
    return 8 * max(f >> 4 for f in factors), 8 * max(f & 15 for f in factors)


def _zeros_end_blocks(tables: bytes) -> bool:
    """Whether the AC table 0 of a DHT segment (B.2.4.2) gives its code of zero bits to end-of-block."""
    at = 0
    while at + 17 < len(tables):
        if tables[at] == 0x10:  # class AC, destination 0
            return tables[at + 17] == 0
        at += 17 + sum(tables[at + 1 : at + 17])
    return False


def frame_size(data: bytes) -> tuple[int, int] | None:
    """(width, height) from the frame header of a JPEG (B.2.2); None where it is missing or the height unknown."""
    if data[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif _is_frame(marker):
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7))
            return (width, height) if width and height else None
        elif marker >= 0xE0 or marker in (_HUFFMAN_TABLES, 0xCC, 0xDB, 0xDD):
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        else:
            return None
    return None
