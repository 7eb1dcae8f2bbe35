"""Which gallery images count for a query: what the lists alone tell, before anything is embedded."""

from __future__ import annotations

import numpy as np

from paddlex_feat.dataset.records import ImageList
from paddlex_feat.errors import DatasetError


def own_pairs(query: ImageList, gallery: ImageList) -> np.ndarray:
    """int64 [P, 2], indices (query, gallery) of records of the same file, ordered by query."""
    places: dict[str, list[int]] = {}
    for index, file in enumerate(gallery.files()):
        places.setdefault(file, []).append(index)
    pairs = [(q, g) for q, file in enumerate(query.files()) for g in places.get(file, ())]
    return np.array(pairs, np.int64).reshape(-1, 2)


def match_counts(query: ImageList, gallery: ImageList, own: np.ndarray | None = None) -> np.ndarray:
    """int64 [Q], how many gallery images have the query's label; the pairs `own` do not count."""
    query_labels, gallery_labels = np.asarray(query.labels, np.int64), np.asarray(gallery.labels, np.int64)
    ordered = np.sort(gallery_labels)
    counts = np.searchsorted(ordered, query_labels, "right") - np.searchsorted(ordered, query_labels, "left")
    if own is not None:
        same = own[query_labels[own[:, 0]] == gallery_labels[own[:, 1]], 0]
        counts -= np.bincount(same, minlength=len(counts))
    return counts


def require_matches(query: ImageList, gallery: ImageList, own: np.ndarray | None = None) -> None:
    """Raise DatasetError if no query has a match: nothing could be measured."""
    if match_counts(query, gallery, own).any():
        return
    other = "" if own is None else " besides its own file (Evaluate.exclude_own)"
    raise DatasetError(
        f"No query has a gallery image of its label{other}: no evaluation would be possible.",
        where=f"query.txt, gallery.txt in {query.root}",
        fix="Give the two lists the same labels; Global.mode=check_dataset lists what is wrong.",
    )
