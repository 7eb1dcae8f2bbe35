"""Which records of some lists have the same file, for millions of records."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from paddlex_feat.data.lists.columns import Texts
from paddlex_feat.data.lists.image_list import ImageList

Place = tuple[int, int]  # number of a list, and of a record there


def same_files(lists: Sequence[ImageList]) -> list[list[Place]]:
    """The places of each file that more than one record has, in their order, by the first of them."""
    texts = [records.paths for records in lists if isinstance(records.paths, Texts)]
    if (
        len(texts) == len(lists)
        and len({records.root for records in lists}) == 1
        and all(text.are_plain_paths for text in texts)
    ):
        return sorted(_by_hashes(texts))
    first: dict[str, Place] = {}
    groups: dict[str, list[Place]] = {}
    for number, records in enumerate(lists):
        for index, file in enumerate(records.files()):
            place = (number, index)
            if (before := first.setdefault(file, place)) != place:
                groups.setdefault(file, [before]).append(place)
    return sorted(groups.values())


def _by_hashes(texts: Sequence[Texts]) -> Iterator[list[Place]]:
    """The groups by a hash of each path, of which those that are equal are compared."""
    hashes = np.concatenate([column.hashes() for column in texts] or [np.empty(0, np.int64)])
    begins = np.cumsum([0, *map(len, texts)])
    order = np.argsort(hashes, kind="stable")
    hashes = hashes[order]
    again = np.flatnonzero(hashes[1:] == hashes[:-1])
    runs = np.split(again, np.flatnonzero(np.diff(again) > 1) + 1) if len(again) else []
    for run in runs:
        found: dict[str, list[Place]] = {}
        for at in order[run[0] : run[-1] + 2].tolist():
            number = int(np.searchsorted(begins, at, side="right")) - 1
            place = (number, at - int(begins[number]))
            found.setdefault(texts[number][place[1]], []).append(place)
        yield from (places for places in found.values() if len(places) > 1)
