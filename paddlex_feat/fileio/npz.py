"""Write .npz files array by array and piece by piece, so that an array need not fit in memory."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import IO

import numpy as np

PADDED_BYTES = 64 * 2**20  # of an array of texts at the length of the longest, from which on they go without padding
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest date of a zip file: the same arrays give the same bytes


class NpzWriter:
    """An .npz file, uncompressed, that `numpy.load(path, allow_pickle=False)` reads.

    A context manager; the file is complete when the block ends.

    Args:
        path: file to write; an existing file is overwritten.
    """

    def __init__(self, path: Path):
        self._archive = zipfile.ZipFile(path, "w")

    def __enter__(self) -> NpzWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._archive.close()

    def write(self, name: str, dtype: np.dtype, shape: tuple[int, ...], pieces: Iterable[bytes]) -> None:
        """Write one array.

        Args:
            name: key of the array.
            dtype: its type, without Python objects.
            shape: its shape.
            pieces: its values in C order, together `dtype.itemsize` bytes for each.
        """
        with self._archive.open(zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH), "w", force_zip64=True) as stream:
            header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(stream, header)
            for piece in pieces:
                stream.write(piece)

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Write one array that is in memory."""
        self.write(name, array.dtype, array.shape, [np.ascontiguousarray(array).tobytes()])

    def write_texts(self, name: str, texts: Sequence[str]) -> None:
        """Write texts without padding: NAME_bytes, uint8 [B], all in UTF-8, and NAME_offsets, int64 [N + 1].

        Text i is bytes offsets[i] to offsets[i + 1].
        """
        offsets = np.zeros(len(texts) + 1, np.int64)
        np.cumsum(np.fromiter((len(_encoded(text)) for text in texts), np.int64, len(texts)), out=offsets[1:])
        self.write(f"{name}_bytes", np.dtype(np.uint8), (int(offsets[-1]),), map(_encoded, texts))
        self.write_array(f"{name}_offsets", offsets)

    def write_names(self, name: str, texts: Sequence[str]) -> None:
        """Write texts as the array NAME, all as long as the longest; where that is large, as `write_texts` does.

        `read_names` reads both.
        """
        longest = max(map(len, texts), default=0)
        if 4 * longest * len(texts) > PADDED_BYTES:
            self.write_texts(name, texts)
        else:
            self.write_array(name, np.array(list(texts), np.str_))


def read_names(content: np.lib.npyio.NpzFile, name: str) -> np.ndarray | list[str] | None:
    """The texts that `NpzWriter.write_names` wrote into an open file; None if there are none.

    Raises as NumPy does, and ValueError, for a file that is damaged.
    """
    if name in content.files or f"{name}_bytes" not in content.files:
        return content[name] if name in content.files else None
    return _cut(name, content[f"{name}_offsets"], content[f"{name}_bytes"].tobytes())


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _cut(name: str, offsets: np.ndarray, data: bytes) -> list[str]:
    ends = offsets[:1].tolist() + offsets[-1:].tolist()
    if offsets.ndim != 1 or ends != [0, len(data)] or (np.diff(offsets) < 0).any():
        raise ValueError(f"{name} has offsets that do not ascend to its end")
    return [data[a:b].decode("utf-8", "surrogatepass") for a, b in pairwise(offsets.tolist())]


class NpzReader:
    """An .npz file whose arrays are read one by one, or row by row. Its content is not trusted: no objects.

    Args:
        path: of the file.

    Attributes:
        names: keys of the arrays.

    Everything raises ValueError, KeyError, EOFError or zipfile.BadZipFile for a file that is not as it must be, and
    OSError.
    """

    def __init__(self, path: Path):
        self._archive = zipfile.ZipFile(path)
        self.names = {name.removesuffix(".npy") for name in self._archive.namelist()}
        # As `NpzWriter` writes them: so nothing that is read is longer than the file.
        strange = [e.filename for e in self._archive.infolist() if e.compress_type or e.file_size != e.compress_size]
        if strange:
            self._archive.close()
            raise ValueError(f"{strange[0]} is compressed")

    def close(self) -> None:
        """Close the file."""
        self._archive.close()

    def array(self, name: str, dtype: type, shape: tuple[int, ...] | None = None) -> np.ndarray:
        """One array. Raises ValueError for another type, or another shape than the one that is given."""
        with self._opened(name, dtype) as (stream, found):
            if shape is not None and found != shape:
                raise ValueError(f"{name} has the shape {found}, not {shape}")
            return np.frombuffer(_exactly(stream, _bytes_of(found, dtype), name), dtype).reshape(found)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array of float32."""
        with self._opened(name, np.float32) as (_, shape):
            return shape

    def rows(self, name: str, dtype: type, count: int) -> Iterator[np.ndarray]:
        """The rows of an array [count, D], one by one."""
        for block in self.blocks(name, dtype, count, 1):
            yield from block

    def blocks(self, name: str, dtype: type, count: int, most: int = 4096) -> Iterator[np.ndarray]:
        """An array [count, D] by `most` rows at a time."""
        with self._opened(name, dtype) as (stream, shape):
            if len(shape) != 2 or shape[0] != count:
                raise ValueError(f"{name} has the shape {shape}, not {count} rows")
            for first in range(0, count, most):
                part = (min(most, count - first), *shape[1:])
                yield np.frombuffer(_exactly(stream, _bytes_of(part, dtype), name), dtype).reshape(part)

    def texts(self, name: str) -> list[str]:
        """What `NpzWriter.write_texts` wrote."""
        data = self.array(f"{name}_bytes", np.uint8).tobytes()
        return _cut(name, self.array(f"{name}_offsets", np.int64), data)

    def text(self, name: str) -> str:
        """An array of one text."""
        with self._archive.open(f"{name}.npy") as stream:
            found = np.lib.format.read_array(stream, allow_pickle=False, max_header_size=_MAX_HEADER)
        if found.dtype.kind != "U" or found.shape != (1,):
            raise ValueError(f"{name} is not one text")
        return str(found[0])

    @contextmanager
    def _opened(self, name: str, dtype: type) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
        """A stream at the values of an array, and its shape."""
        entry = self._archive.getinfo(f"{name}.npy")
        with self._archive.open(entry) as stream:
            if np.lib.format.read_magic(stream) != (1, 0):
                raise ValueError(f"{name} has another version of the form")
            shape, fortran, found = np.lib.format.read_array_header_1_0(stream, max_header_size=_MAX_HEADER)
            if found != np.dtype(dtype) or fortran or _bytes_of(shape, dtype) > entry.file_size:
                raise ValueError(f"{name} is {found} {shape}, in {entry.file_size} bytes")
            yield stream, shape


_MAX_HEADER = 10_000  # bytes


def _bytes_of(shape: tuple[int, ...], dtype: type) -> int:
    if any(side < 0 for side in shape):
        raise ValueError(f"a shape is {shape}")
    return math.prod(shape) * np.dtype(dtype).itemsize


def _exactly(stream: IO[bytes], size: int, name: str) -> bytes:
    data = stream.read(size)
    if len(data) != size:
        raise EOFError(f"{name} ends early")
    return data
