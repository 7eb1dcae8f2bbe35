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
    folder of the data set; lists: text [G + Q], "gallery" or "query".

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
    number, text = len(paths), np.dtype(f"<U{max(map(len, paths))}")  # NumPy stores texts at the length of the longest
    with atomic_path(path) as temporary, NpzWriter(temporary) as writer:
        for name, dtype, shape, columns in (
            ("features", np.dtype(np.float32), (number, gallery.shape[1]), (gallery, query)),
            ("labels", np.dtype(np.int64), (number,), (gallery_list.labels, query_list.labels)),
            ("paths", text, (number,), (paths,)),
            ("lists", np.dtype("<U7"), (number,), (lists,)),
        ):
            writer.write(name, dtype, shape, _pieces(dtype, columns))


def _pieces(dtype: np.dtype, columns: Sequence[Any]) -> Iterator[bytes]:
    for column in columns:
        for first in range(0, len(column), _ROWS_PER_PIECE):
            yield np.asarray(column[first : first + _ROWS_PER_PIECE], dtype).tobytes()
