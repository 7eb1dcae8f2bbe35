"""Columns of a list of images: millions of paths and labels without an object for each.

They are sequences, so whatever reads a list of Python objects reads these too; what concerns all rows at once, they
answer by arrays.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, TypeVar, overload

import numpy as np

T = TypeVar("T")
_CHUNK = 2**16  # rows that are Python objects at a time


class _Column(Sequence[T]):
    """What lists do beside sequences: they are compared by their elements, and added."""

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str) or len(self) != len(other):
            return False
        return all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __add__(self, other: Sequence[T]) -> list[T]:
        return [*self, *other]

    def __radd__(self, other: Sequence[T]) -> list[T]:
        return [*other, *self]


class Texts(_Column[str]):
    """Texts in one block of bytes, UTF-8; bytes that are not become surrogates, as in file names of `os`.

    Args:
        block: that holds them all.
        starts: offset of the first byte of each, int64 [N].
        ends: offset after its last byte, int64 [N].
    """

    def __init__(self, block: bytes, starts: np.ndarray, ends: np.ndarray, whole: Texts | None = None):
        self.block = block
        self._starts, self._ends = starts, ends
        self._whole = whole  # whose part this is

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Texts: ...

    def __getitem__(self, place: int | slice) -> str | Texts:
        if isinstance(place, slice):
            return self._part(self._starts[place], self._ends[place])
        return self.block[self._starts[place] : self._ends[place]].decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (text.decode("utf-8", "surrogateescape") for text in self.encoded())

    def encoded(self) -> Iterator[bytes]:
        """The bytes of each."""
        block = self.block
        for at in range(0, len(self), _CHUNK):
            starts, ends = self._starts[at : at + _CHUNK].tolist(), self._ends[at : at + _CHUNK].tolist()
            yield from (block[start:end] for start, end in zip(starts, ends, strict=True))

    def take(self, indices: np.ndarray) -> Texts:
        """Those of these places, int64 [M]."""
        return self._part(self._starts[indices], self._ends[indices])

    def _part(self, starts: np.ndarray, ends: np.ndarray) -> Texts:
        return Texts(self.block, starts, ends, self._whole or self)

    def hold(self, part: bytes) -> bool:
        """Whether some bytes are in the block, in a text or between two of them."""
        return part in self.block

    def first_bytes(self, place: int = 0) -> np.ndarray:
        """The byte of each at `place`, uint8 [N]; what follows the text in the block where it is shorter."""
        found: np.ndarray = np.frombuffer(self.block, np.uint8)[np.minimum(self._starts + place, len(self.block) - 1)]
        return found

    @cached_property
    def are_plain_paths(self) -> bool:
        """Whether two paths are the same file only if they are the same text: none is absolute or could be shorter."""
        if self._whole is not None:  # which looks through the block once for all its parts
            return self._whole.are_plain_paths
        return not self.hold(b"./") and not self.hold(b"//") and not (self.first_bytes() == ord("/")).any()

    def hashes(self) -> np.ndarray:
        """A number of each, int64 [N], that is the same for equal texts in this process."""
        return np.fromiter(map(hash, self.encoded()), np.int64, len(self))


class Numbers(_Column[int]):
    """Integers in an array, int64 [N]; each becomes an int of Python when it is asked for."""

    def __init__(self, values: np.ndarray):
        self._values = values

    def __len__(self) -> int:
        return len(self._values)

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> Numbers: ...

    def __getitem__(self, place: int | slice) -> int | Numbers:
        return Numbers(self._values[place]) if isinstance(place, slice) else int(self._values[place])

    def __iter__(self) -> Iterator[int]:
        for at in range(0, len(self), _CHUNK):
            yield from self._values[at : at + _CHUNK].tolist()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._values, dtype, copy=copy)

    def take(self, indices: np.ndarray) -> Numbers:
        """Those of these places, int64 [M]."""
        return Numbers(self._values[indices])


class Files(_Column[str]):
    """The files of paths that are relative to a folder, joined when they are asked for.

    Args:
        root: the folder.
        paths: as a list of images has them.
    """

    def __init__(self, root: str, paths: Texts):
        self._root, self._paths = root, paths

    def __len__(self) -> int:
        return len(self._paths)

    @overload
    def __getitem__(self, place: int) -> str: ...

    @overload
    def __getitem__(self, place: slice) -> Files: ...

    def __getitem__(self, place: int | slice) -> str | Files:
        found = self._paths[place]
        return Files(self._root, found) if isinstance(found, Texts) else join(self._root, found)

    def __iter__(self) -> Iterator[str]:
        root = self._root
        return (join(root, path) for path in self._paths)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Files) and self._paths is other._paths:
            return self._root == other._root
        return super().__eq__(other)

    __hash__ = None

    def encoded(self) -> Iterator[bytes]:
        """The bytes of each."""
        if self._paths.are_plain_paths:
            folder = os.fsencode(os.path.join(self._root, ""))
            return (folder + path for path in self._paths.encoded())
        return map(os.fsencode, self)


def join(root: str, path: str) -> str:
    """One path for each file: `a.jpg`, `./a.jpg` and `b/../a.jpg` are the same."""
    joined = os.path.join(root, path)
    return os.path.normpath(joined) if "./" in path or "//" in path else joined


def taken(column: Sequence[Any], indices: np.ndarray) -> Sequence[Any]:
    """The rows of a column at these places, int64 [M], as a column of its kind."""
    if isinstance(column, Texts | Numbers):
        return column.take(indices)
    return [column[i] for i in indices.tolist()]
