"""The quick way to read a list of millions of lines: lists as this package and PaddleX write them, by arrays.

A list is plain if each of its lines is a path, one space and an integer, in UTF-8 without anything that the general
reader has to look at. For such a list `shitu_rec` would find the same records and nothing else.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

import numpy as np

from paddlex_feat.data.lists.columns import Numbers, Texts

_LINES = 2**20  # that are looked at together
_BYTES = 2**24
_DIGITS = 18  # of a label at most
_CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f]")
# The first bytes of characters that Python takes for blanks beside ASCII's; E3 begins all of Japan's, so only E3 80 80.
_BLANKS = np.array([0xC2, 0xE1, 0xE2], np.uint8)
_NEWLINE, _SPACE, _ZERO, _LAST_OF_ASCII = 10, 32, 48, 0x7F


def read_plain(data: bytes) -> tuple[Texts, Numbers, Sequence[int]] | None:
    """Paths, labels and lines of a plain list, of which `data` is the content; None for any other."""
    if not data or data.startswith(codecs.BOM_UTF8) or _CONTROL.search(data) or not _is_utf8(data):
        return None
    content, starts, ends = np.frombuffer(data, np.uint8), *_lines(data)
    filled = ends > starts
    lines: Sequence[int] = range(1, len(starts) + 1)
    if not filled.all():
        lines, starts, ends = Numbers(np.flatnonzero(filled) + 1), starts[filled], ends[filled]
    if not len(starts):
        return None
    labels, stops = np.empty(len(starts), np.int64), np.empty(len(starts), np.int64)
    for at in range(0, len(starts), _LINES):
        part = slice(at, at + _LINES)
        if not _split(content, starts[part], ends[part], labels[part], stops[part]):
            return None
    return Texts(data, starts, stops), Numbers(labels), lines


def _is_utf8(data: bytes) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for at in range(0, len(data), _BYTES):
            decoder.decode(data[at : at + _BYTES], at + _BYTES >= len(data))
    except UnicodeDecodeError:
        return False
    return True


def _lines(data: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Where each line starts and ends, int64 [lines] each."""
    content = np.frombuffer(data, np.uint8)
    found = [np.flatnonzero(content[at : at + _BYTES] == _NEWLINE) + at for at in range(0, len(data), _BYTES)]
    ends = np.concatenate(found)
    if not data.endswith(b"\n"):
        ends = np.append(ends, len(data))
    starts = np.empty_like(ends)
    starts[:1], starts[1:] = 0, ends[:-1] + 1
    return starts, ends


def _split(content: np.ndarray, starts: np.ndarray, ends: np.ndarray, labels: np.ndarray, stops: np.ndarray) -> bool:
    """Fill the label of each line and the end of its path; whether all are a path, one space and an integer."""
    place, value, power = ends - 1, np.zeros(len(ends), np.int64), 1
    left = np.arange(len(ends))  # lines whose space is not found yet
    for digits in range(_DIGITS + 1):
        characters = content[np.maximum(place[left], 0)]
        is_space = characters == _SPACE
        if digits:
            left, characters = left[~is_space], characters[~is_space]
        if not len(left):
            break
        figure = characters.astype(np.int64) - _ZERO
        if digits == _DIGITS or ((figure < 0) | (figure > 9)).any():
            return False
        value[left] += figure * power
        place[left] -= 1
        power *= 10
    if (place <= starts).any():
        return False
    first, last = content[starts], content[place - 1]
    blank = (first <= _SPACE) | np.isin(first, _BLANKS) | (last <= _SPACE) | (last > _LAST_OF_ASCII)
    wide = first == 0xE3
    blank[wide] |= (content[starts[wide] + 1] == 0x80) & (content[starts[wide] + 2] == 0x80)
    labels[:], stops[:] = value, place
    return not blank.any()
