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

MAX_PAIRS = 20_000_000  # of `find_camera_pairs`, of 16 bytes and some 48 while they are found; Market-1501 has 40,000
MAX_COMPARED = 2**26  # bytes that `count_copies` reads: uncompressed images all have the same size


def find_self_pairs(query: ImageList, gallery: ImageList) -> np.ndarray:
    """Indices (query, gallery) of records of the same file, by path or link, ordered by query: int64 [P, 2]."""
    places: dict[Hashable, list[int]] = {}
    for index, file in enumerate(gallery.files()):
        places.setdefault(_identity(file), []).append(index)
    pairs = [(q, g) for q, file in enumerate(query.files()) for g in places.get(_identity(file), ())]
    return np.array(pairs, np.int64).reshape(-1, 2)


def excluded_pairs(query: ImageList, gallery: ImageList, exclude_self: bool = False) -> np.ndarray | None:
    """Pairs (query, gallery) that do not count: int64 [P, 2], ordered by query; None where all pairs count.

    A query's own file does not count with `exclude_self` or in a data set for leave-one-out evaluation; an image of its
    class from its camera does not count in a data set that names cameras.

    Raises:
        DatasetError: more than MAX_PAIRS pairs share class and camera.
    """
    found = []
    if exclude_self or query.leave_one_out:
        found.append(find_self_pairs(query, gallery))
    if query.cameras and gallery.cameras:
        found.append(find_camera_pairs(query, gallery))
    return np.unique(np.concatenate(found), axis=0) if len(found) > 1 else next(iter(found), None)


def find_camera_pairs(query: ImageList, gallery: ImageList) -> np.ndarray:
    """Indices (query, gallery) of records of the same class and camera, ordered by both: int64 [P, 2].

    Raises:
        DatasetError: there are more than MAX_PAIRS.
    """
    queries = len(query)
    labels = np.unique([*query.labels, *gallery.labels], return_inverse=True)[1]
    cameras, places = np.unique([*query.cameras, *gallery.cameras], return_inverse=True)
    keys = labels * len(cameras) + places
    order = np.argsort(keys[queries:], kind="stable")
    ordered = keys[queries:][order]
    first = np.searchsorted(ordered, keys[:queries], "left")
    counts = np.searchsorted(ordered, keys[:queries], "right") - first
    total = int(counts.sum())
    if total > MAX_PAIRS:
        raise DatasetError(
            f"{total:,} pairs of a query and a gallery image share class and camera, more than the {MAX_PAIRS:,} that "
            "are held in memory.",
            where=str(query.root),
            fix="Divide the gallery, or give each class several cameras.",
            code="camera-pairs",
        )
    starts = np.cumsum(counts) - counts  # of each query among the pairs
    chosen = order[np.repeat(first - starts, counts) + np.arange(total)]
    return np.stack([np.repeat(np.arange(queries), counts), chosen], axis=1).astype(np.int64)


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
    if query.leave_one_out or query.cameras:
        other = " from another camera" if query.cameras else " besides its own file"
    files = ", ".join(dict.fromkeys((query.source, gallery.source)))
    raise DatasetError(
        f"No query has a gallery image of its label{other}: no evaluation would be possible.",
        where=f"{files} in {query.root}",
        fix="Give the two lists the same labels; Global.mode=check_dataset lists what is wrong.",
        code="no-matches",
    )
