"""The features of an evaluation as a file that NumPy loads."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.fileio.atomic import atomic_path

FEATURES = "features.npz"
_STREAMED_ROWS = 4096
_ZIP_EPOCH = (1980, 1, 1, 0, 0, 0)  # the earliest a zip file knows: the same content gives the same bytes


def write_features(
    path: Path, gallery: np.ndarray, query: np.ndarray, gallery_list: ImageList, query_list: ImageList
) -> None:
    """Write an .npz with one row an image, the gallery first; `numpy.load(path, allow_pickle=False)` reads it.

    features: float32 [G + Q, D]; labels: int64 [G + Q]; paths: text [G + Q], as listed, relative to the
    data set's folder; lists: text [G + Q], "gallery" or "query".

    Args:
        gallery, query: float32 [G, D] and [Q, D]; they are streamed, not copied.

    Raises OutputError; the file is written whole or not at all.
    """
    paths = [*gallery_list.paths, *query_list.paths]
    lists = ["gallery"] * len(gallery) + ["query"] * len(query)
    columns: dict[str, tuple[np.dtype, tuple[int, ...], Iterator[np.ndarray]]] = {
        "features": (np.dtype(np.float32), (len(paths), gallery.shape[1]), _pieces(gallery, query)),
        "labels": (np.dtype(np.int64), (len(paths),), _pieces(gallery_list.labels, query_list.labels)),
        "paths": (_text(paths), (len(paths),), _pieces(paths)),
        "lists": (_text(["gallery"]), (len(paths),), _pieces(lists)),
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, (dtype, shape, pieces) in columns.items():
            member = zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH)
            with archive.open(member, "w", force_zip64=True) as stream:
                header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
                for piece in pieces:
                    stream.write(np.asarray(piece, dtype).tobytes())


def _text(texts: Sequence[str]) -> np.dtype:
    """NumPy gives every text of an array the room of the longest."""
    return np.dtype(f"<U{max(map(len, texts))}")


def _pieces(*columns: Any) -> Iterator[Any]:
    for column in columns:
        for first in range(0, len(column), _STREAMED_ROWS):
            yield column[first : first + _STREAMED_ROWS]
