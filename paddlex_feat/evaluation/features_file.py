"""Write the features of an evaluation to a file that NumPy loads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.fileio.npz import NpzWriter

FEATURES = "features.npz"
_ROWS_PER_PIECE = 4096


def write_features(
    path: Path, gallery: np.ndarray, query: np.ndarray, gallery_list: ImageList, query_list: ImageList
) -> None:
    """Write an .npz with one row an image, the gallery first; `numpy.load(path, allow_pickle=False)` reads it.

    Its arrays are features: float32 [G + Q, D]; labels: int64 [G + Q]; paths: text [G + Q], as listed, relative to the
    folder of the data set, many of them without padding (`NpzWriter.write_names`); lists: text [G + Q], "gallery" or
    "query".

    Args:
        path: file to write; it appears whole or not at all.
        gallery: float32 [G, D]; streamed, not copied.
        query: float32 [Q, D]; streamed, not copied.
        gallery_list: the records of `gallery`.
        query_list: the records of `query`.

    Raises:
        OutputError: If the file cannot be written.
    """
    paths = [*gallery_list.paths, *query_list.paths]
    lists = ["gallery"] * len(gallery) + ["query"] * len(query)
    number, labels = len(paths), (gallery_list.labels, query_list.labels)
    with atomic_path(path) as temporary, NpzWriter(temporary) as writer:
        floats, integers = np.dtype(np.float32), np.dtype(np.int64)
        writer.write("features", floats, (number, gallery.shape[1]), _pieces(floats, (gallery, query)))
        writer.write("labels", integers, (number,), _pieces(integers, labels))
        writer.write_names("paths", paths)
        writer.write("lists", np.dtype("<U7"), (number,), _pieces(np.dtype("<U7"), (lists,)))


def _pieces(dtype: np.dtype, columns: Sequence[Any]) -> Iterator[bytes]:
    for column in columns:
        for first in range(0, len(column), _ROWS_PER_PIECE):
            yield np.asarray(column[first : first + _ROWS_PER_PIECE], dtype).tobytes()
