"""Write .npz files array by array and piece by piece, so that an array need not fit in memory."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType

import numpy as np

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
