"""Which gallery images count for a query, as far as the lists tell, before anything is embedded."""

from __future__ import annotations

import os
from collections.abc import Hashable
from hashlib import sha256

import numpy as np

from paddlex_feat.data.images.decode import read_content
from paddlex_feat.data.images.source import ImageSource, box_of, size_of
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import DatasetError, ImageError

MAX_COMPARED = 2**26  # bytes that `count_copies` reads: uncompressed images all have the same size


def find_self_pairs(query: ImageList, gallery: ImageList) -> np.ndarray:
    """Indices (query, gallery) of records of the same file, by path or link, ordered by query: int64 [P, 2]."""
    places: dict[Hashable, list[int]] = {}
    for index, file in enumerate(gallery.files()):
        places.setdefault(_identity(file), []).append(index)
    pairs = [(q, g) for q, file in enumerate(query.files()) for g in places.get(_identity(file), ())]
    return np.array(pairs, np.int64).reshape(-1, 2)


def _identity(file: str) -> Hashable:
    """A key that all names of one file share; the name itself if the system has no such key."""
    try:
        if isinstance(file, ImageSource):
            return file
        status = os.stat(file)  # noqa: PTH116 - for speed
    except (OSError, ValueError):
        return file
    return (status.st_dev, status.st_ino) if status.st_ino else file


def count_copies(query: ImageList, gallery: ImageList, self_pairs: np.ndarray) -> int:
    """Count the queries with a byte-identical copy of their file in the gallery, without those of `self_pairs`.

    The count is a lower bound if it would need more than MAX_COMPARED bytes to be read.
    """
    by_size: dict[int, list[str]] = {}
    for file in gallery.files():
        by_size.setdefault(_size(file), []).append(file)
    known, left, count = set(self_pairs[:, 0].tolist()), MAX_COMPARED, 0
    digests: dict[str, bytes] = {}
    for index, file in enumerate(query.files()):
        size = _size(file)
        if index in known or size <= 0 or size not in by_size:
            continue
        for name in (file, *by_size[size]):
            if name not in digests:
                if left < size:
                    return count
                left -= size
                digests[name] = _digest(name)
        count += any(digests[name] == digests[file] for name in by_size[size])
    return count


def describe_self_matches(query: ImageList, gallery: ImageList) -> str:
    """A warning that counts the queries whose own file or a copy of it is in the gallery; "" if there are none."""
    self_pairs, parts = find_self_pairs(query, gallery), []
    count, copies = len(np.unique(self_pairs[:, 0])), count_copies(query, gallery, self_pairs)
    if count:
        parts.append(
            f"{count} of {len(query)} queries are in the gallery themselves and find themselves; "
            "-o Evaluate.exclude_self=True leaves their own file out."
        )
    if copies:
        parts.append(
            f"{copies} of {len(query)} queries have a copy of their file in the gallery and find it; "
            "Global.mode=check_dataset names them."
        )
    return " ".join(parts)


def _size(file: str) -> int:
    try:
        return size_of(file)
    except (OSError, ValueError):
        return -1


def _digest(file: str) -> bytes:
    try:
        return sha256(read_content(file) + repr(box_of(file)).encode()).digest()
    except ImageError:
        return os.fsencode(file)  # equal to no other


def match_counts(query: ImageList, gallery: ImageList, self_pairs: np.ndarray | None = None) -> np.ndarray:
    """Number of gallery images with the label of each query, int64 [Q]; `self_pairs` do not count."""
    query_labels, gallery_labels = np.asarray(query.labels, np.int64), np.asarray(gallery.labels, np.int64)
    ordered = np.sort(gallery_labels)
    counts = np.searchsorted(ordered, query_labels, "right") - np.searchsorted(ordered, query_labels, "left")
    if self_pairs is not None:
        same = self_pairs[query_labels[self_pairs[:, 0]] == gallery_labels[self_pairs[:, 1]], 0]
        counts -= np.bincount(same, minlength=len(counts))
    return counts


def require_matches(query: ImageList, gallery: ImageList, self_pairs: np.ndarray | None = None) -> None:
    """Raise DatasetError ("no-matches") if no query has a gallery image of its label."""
    if match_counts(query, gallery, self_pairs).any():
        return
    other = "" if self_pairs is None else " besides its own file (Evaluate.exclude_self)"
    raise DatasetError(
        f"No query has a gallery image of its label{other}: no evaluation would be possible.",
        where=f"query.txt, gallery.txt in {query.root}",
        fix="Give the two lists the same labels; Global.mode=check_dataset lists what is wrong.",
        code="no-matches",
    )
