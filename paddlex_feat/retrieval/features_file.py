"""The features of an evaluation as a file that NumPy loads."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from paddlex_feat.dataset.records import ImageList
from paddlex_feat.files import atomic_path

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
    counts = [len(gallery_list), len(query_list)]
    columns = {
        "features": (gallery, query),
        "labels": (np.array(gallery_list.labels + query_list.labels, np.int64),),
        "paths": (np.array(gallery_list.paths + query_list.paths, np.str_),),
        "lists": (np.repeat(np.array(["gallery", "query"]), counts),),
    }
    with atomic_path(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        for name, parts in columns.items():
            member = zipfile.ZipInfo(f"{name}.npy", _ZIP_EPOCH)
            with archive.open(member, "w", force_zip64=True) as stream:
                shape = (sum(map(len, parts)), *parts[0].shape[1:])
                header = {"descr": parts[0].dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(stream, header)
                for block in _blocks(parts):
                    stream.write(block.tobytes())


def _blocks(parts: tuple[np.ndarray, ...]) -> Iterator[np.ndarray]:
    for part in parts:
        for first in range(0, len(part), _STREAMED_ROWS):
            yield part[first : first + _STREAMED_ROWS]
