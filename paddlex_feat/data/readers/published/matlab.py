"""Read the small MATLAB 5 files of data sets: SciPy's reader, behind a check of the file's structure.

A file is untrusted. Compressed elements may expand a thousandfold, an array may declare any number of elements, and
SciPy 1.17 ends the process (segmentation fault) on some damaged elements. So a file is expanded here within a bound,
and each element that SciPy would read is checked before. Format: MathWorks, "MAT-File Format", level 5.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from pathlib import Path
from typing import Any

from paddlex_feat.errors import DependencyError
from paddlex_feat.fileio.reading import read_small

MAX_BYTES = 32 * 2**20  # of a file, and of what it expands to; cars_annos.mat has less than 1 MiB, and some 9 expanded
MAX_ARRAYS = 500_000  # in cells and structures too; cars_annos.mat has 115,000
MAX_DEPTH = 8  # of arrays in cells and structures, and dimensions
_HEADER = 128
_MATRIX, _COMPRESSED = 14, 15  # kinds of elements
_INTEGERS, _NAME = (5, 6), (1, 16)
_VALUES, _LETTERS = (1, 2, 3, 4, 5, 6, 7, 9, 12, 13), (1, 2, 4, 16, 17, 18)
_CELL, _STRUCT, _CHAR, _NUMBERS = 1, 2, 4, range(6, 16)  # classes of arrays
_COMPLEX = 0x0800  # a flag of arrays: the imaginary parts follow the real ones
_MAX_NAME = 64  # characters of a field's name


class MatError(ValueError):
    """A file that is not a MATLAB 5 file of cells, structures, text and numbers within the bounds."""


def load(path: Path) -> dict[str, Any]:
    """The variables of a MATLAB 5 file, as `scipy.io.loadmat(…, squeeze_me=True)` gives them.

    Raises:
        OSError: the file cannot be read, or has more than MAX_BYTES.
        MatError: it is damaged, too large once expanded, or holds other kinds of arrays.
        DependencyError: SciPy is not installed.
    """
    try:
        from scipy.io import loadmat  # 0.2 s, and an extra
    except ImportError:
        raise DependencyError(
            "Files of MATLAB (.mat) need SciPy, which is not installed.",
            where=str(path),
            fix="pip install 'paddlex_feat[mat]'",
            code="scipy-missing",
        ) from None
    data = expand(read_small(path, MAX_BYTES))
    try:
        loaded: dict[str, Any] = loadmat(
            io.BytesIO(data), squeeze_me=True, uint16_codec="utf-16-le" if data[126:128] == b"IM" else "utf-16-be"
        )
    except Exception as error:  # noqa: BLE001 - what SciPy raises for damaged files is not documented
        raise MatError(f"SciPy cannot read it ({type(error).__name__})") from None
    return loaded


def expand(data: bytes) -> bytes:
    """The file without compression. Raises MatError where it is not within the bounds."""
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or len(data) < _HEADER:
        raise MatError("it is not a MATLAB 5 file")
    whole, at = bytearray(data[:_HEADER]), _HEADER
    while at < len(data):
        kind, start, end, after = _element(data, at, len(data), order)
        piece = _inflate(data[start:end], MAX_BYTES - len(whole)) if kind == _COMPRESSED else data[at:after]
        whole += piece
        if len(whole) > MAX_BYTES:
            raise MatError(f"it expands to more than {MAX_BYTES:,} bytes")
        at = end if kind == _COMPRESSED else after  # compressed elements are not padded
    _Arrays(bytes(whole), order).check()
    return bytes(whole)


def _inflate(data: bytes, most: int) -> bytes:
    """What a compressed element holds. Raises MatError for more than `most` bytes."""
    stream = zlib.decompressobj()
    try:
        inflated = stream.decompress(data, max(most, 1))
    except zlib.error:
        raise MatError("a compressed element is damaged") from None
    if not stream.eof:
        reason = f"it expands to more than {MAX_BYTES:,} bytes" if len(inflated) >= most else "it ends early"
        raise MatError(reason)
    return inflated


def _element(data: bytes, at: int, limit: int, order: str) -> tuple[int, int, int, int]:
    """Kind of the element at an offset, where its data start and end, and where the next element is."""
    if at + 8 > limit:
        raise MatError("it ends early")
    kind, size = struct.unpack_from(f"{order}II", data, at)
    if kind >> 16:  # a small element: size, kind and up to four bytes in eight
        kind, size = kind & 0xFFFF, kind >> 16
        start, after = at + 4, at + 8
        if size > 4:
            raise MatError("a small element is too long")
    else:
        start = at + 8
        after = min(start + size + -size % 8, limit)
    if start + size > limit:
        raise MatError("it ends early")
    return kind, start, start + size, after


class _Arrays:
    """Walks the arrays of a file as SciPy does. Raises MatError for what could take long or fill the memory."""

    def __init__(self, data: bytes, order: str):
        self._data, self._order = data, order
        self._left = MAX_ARRAYS

    def check(self) -> None:
        """Check all arrays of the file."""
        at = _HEADER
        while at < len(self._data):
            at = self._check_array(at, len(self._data), 1)

    def _check_array(self, at: int, limit: int, depth: int) -> int:
        """Check the array at an offset; returns where the next one is."""
        kind, at, end, _ = _element(self._data, at, limit, self._order)
        self._left -= 1
        if kind != _MATRIX or end % 8 != at % 8:
            raise MatError("it has another element where an array should be")
        if depth > MAX_DEPTH or self._left < 0:
            raise MatError("it has too many arrays, or arrays too deep in others")
        if at == end:
            return end
        form, count, at = self._read_head(at, end)
        if form & 0xFF in (_STRUCT, _CELL):
            for _ in range(count):
                at = self._check_array(at, end, depth + 1)
        else:
            for _ in range(1 + bool(form & _COMPLEX)):
                *_, at = self._read(at, end, _LETTERS if form & 0xFF == _CHAR else _VALUES)
        if at != end:
            raise MatError("an array is longer than what it holds")
        return end

    def _read_head(self, at: int, end: int) -> tuple[int, int, int]:
        """Flags of an array, number of its elements (arrays, of cells and structures), and where they start."""
        (flags, _), at = self._read_integers(at, end, 2)
        shape, at = self._read_integers(at, end)
        *_, at = self._read(at, end, _NAME)
        form, count = flags & 0xFF, math.prod(shape)
        if form not in (_CELL, _STRUCT, _CHAR, *_NUMBERS):
            raise MatError(f"it has an array of class {form}, not cells, structures, text or numbers")
        if not 2 <= len(shape) <= MAX_DEPTH or min(shape) < 0:
            raise MatError("an array has no dimensions")
        if form == _STRUCT:
            (length,), at = self._read_integers(at, end, 1)
            start, stop, at = self._read(at, end, _NAME)
            if not 0 < length <= _MAX_NAME or stop - start < length:
                raise MatError("the fields of a structure have no names")
            count *= (stop - start) // length
        if count > end - at:
            raise MatError("an array declares more elements than it has bytes")
        return flags, count, at

    def _read(self, at: int, end: int, kinds: tuple[int, ...]) -> tuple[int, int, int]:
        """Where the data of an element of one of some kinds start and end, and where the next element is."""
        kind, start, stop, at = _element(self._data, at, end, self._order)
        if kind not in kinds:
            raise MatError(f"it has an element of kind {kind} at an unusual place")
        return start, stop, at

    def _read_integers(self, at: int, end: int, count: int | None = None) -> tuple[tuple[int, ...], int]:
        """The integers of an element, and where the next element is."""
        start, stop, at = self._read(at, end, _INTEGERS)
        found = (stop - start) // 4
        if (stop - start) % 4 or count not in (None, found) or found > _MAX_NAME:
            raise MatError("an array has no flags, dimensions or fields")
        return struct.unpack_from(f"{self._order}{found}i", self._data, start), at
