"""The structure of a JPEG file: its segments and scans (ITU-T T.81, annex B), read without decoding."""

from __future__ import annotations

import re
from mmap import mmap
from typing import NamedTuple

# All markers with a length; restart markers and stuffed bytes (FF 00) belong to the data of a scan.
_MARKER = re.compile(rb"\xff[^\0\xff\x01\xd0-\xd8]")
_END, _SCAN, _HUFFMAN_TABLES = 0xD9, 0xDA, 0xC4
MAX_SCANS = 500  # that are counted


class Layout(NamedTuple):
    """What the segments of a JPEG say.

    Attributes:
        scans: number of scans, at most MAX_SCANS + 1.
        pixels: of the largest frame header.
        end: offset behind the end-of-image marker; 0 if there is none.
        first_scan: offset of the entropy-coded data of the first scan; 0 if there is none.
        mcu: (width, height) in pixels of a minimum coded unit of the first scan; (0, 0) unless the frame is
            sequential and Huffman-coded, and all its components are in that scan.
        zeros_are_flat: zero bits are the code of an end-of-block in the luminance table, so that a long run of them
            is a flat area.
    """

    scans: int
    pixels: int
    end: int
    first_scan: int
    mcu: tuple[int, int]
    zeros_are_flat: bool


def read_layout(data: bytes | mmap, whole: bool = True) -> Layout:
    """The layout of a JPEG file, as far as its markers can be followed.

    whole: False stops at the first scan, which is several times faster; `scans` is 1 then and `end` 0.
    """
    at, scans, pixels, end, first_scan, mcu, flat = 2, 0, 0, 0, 0, (0, 0), False
    components = b""
    while scans <= MAX_SCANS and (found := _MARKER.search(data, at)):
        marker, at = data[found.start() + 1], found.end()
        if marker == _END:
            end = at
            break
        length = int.from_bytes(data[at : at + 2], "big")
        if marker == _SCAN:
            scans += 1
            if not first_scan:
                first_scan = at + length
                mcu = mcu if data[at + 2 : at + 3] == components else (0, 0)
            if not whole:
                break
        elif marker == _HUFFMAN_TABLES:
            flat |= not scans and _zeros_end_blocks(data[at + 2 : at + length])
        elif _is_frame(marker):
            height, width = (int.from_bytes(data[at + i : at + i + 2], "big") for i in (3, 5))
            pixels = max(pixels, width * height)
            components = data[at + 7 : at + 8]
            if not scans:
                mcu = _mcu(data[at : at + length]) if marker in (0xC0, 0xC1) else (0, 0)
        at += length
    return Layout(scans, pixels, end, first_scan, mcu, flat)


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
