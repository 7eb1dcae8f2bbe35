"""Streaming rank counter of one query.

Per gallery tile it counts the images that rank above each match, and keeps the K nearest images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

ExactDots = Callable[[np.ndarray], np.ndarray]  # columns of a tile, int64 [n] -> exact similarities, float64 [n]
MASKED = -8.0  # similarity of an excluded column: below every real one, since no row is longer than sqrt(2)
_LOWEST = -4.0  # between MASKED and every real similarity
_COLUMN_BITS = 2**29 - 1  # the last bits of a float64, which are 0 in one that was a float32
_SAMPLE = 1024  # columns of the first tile from which a lower bound of the K nearest is taken
_HEAVY = 16  # if more than a 16th of a tile's columns are in doubt, exact products of the whole tile are cheaper


class QueryRankCounter:
    """Counts, for each match, the images of other labels whose similarity is at least as large.

    Args:
        similarity: float64 [m], exact similarities of the matches.
        columns: int64 [m], their columns in the gallery.
        keep: K, number of nearest images to keep.
        bound: largest difference between a float32 and an exact similarity.

    Attributes:
        num_above: int64 [m], the counts, for the matches in ascending order of similarity.
        first_match: similarity and column of the most similar match; nan and -1 if there is none.
    """

    def __init__(self, similarity: np.ndarray, columns: np.ndarray, keep: int, bound: float):
        order = np.lexsort((columns, -similarity))[: max(keep, 1)]
        self._nearest_matches = similarity[order], columns[order]
        self.first_match = (float(similarity[order[0]]), int(columns[order[0]])) if len(order) else (np.nan, -1)
        self._nearest_others = np.empty(0), np.empty(0, np.int64)
        self._keep, self._bound = keep, bound
        self._matches = np.sort(similarity)
        self.num_above = np.zeros(len(similarity), np.int64)

    def update(self, row: np.ndarray, first: int, exact: ExactDots) -> bool:
        """Count a tile of float32 similarities; those within the error bound of a match are computed exactly.

        Args:
            row: float32 [w], similarities of the columns from `first` on; MASKED for excluded columns.
            first: gallery column of row[0].
            exact: exact similarities of columns of the tile.

        Returns:
            False, with nothing counted, if too many columns are in doubt: call `update_exact` then.
        """
        if len(self._matches) > len(row) // _HEAVY:
            return False  # with so many matches hardly any column is free of doubt
        bound = self._bound + len(row) * 2.0**-50  # `_sort_with_columns` changes the last bits
        keys = _sort_with_columns(row, self._floor(row, bound))
        starts, stops = (len(keys) - _num_at_least(keys, self._matches + shift) for shift in (-bound, bound))
        in_doubt = _union(starts, stops)
        candidates = _columns(keys[np.searchsorted(keys, self._topk_floor(keys, bound)) :])
        if len(in_doubt) + len(candidates) > self._keep + len(row) // _HEAVY:
            return False
        self.num_above += len(keys) - stops  # at least `bound` above the match
        if len(in_doubt):
            # Those of them at `stops` or later are counted already, and their exact similarities count them too.
            similarity = np.sort(exact(_columns(keys[in_doubt])))
            not_counted = np.searchsorted(in_doubt, stops)
            self.num_above += not_counted - (len(similarity) - _num_at_least(similarity, self._matches))
        if len(candidates):
            self._push_topk(exact(candidates), candidates + first)
        return True

    def update_exact(self, row: np.ndarray, first: int) -> None:
        """Count a tile of exact similarities, float64 [w]; `first` and masked columns as for `update`."""
        ascending = np.sort(row[row >= _LOWEST])
        self.num_above += _num_at_least(ascending, self._matches)
        if len(ascending) and self._keep:
            least = ascending[-min(self._keep, len(ascending))]
            columns = np.concatenate([np.flatnonzero(row > least), np.flatnonzero(row == least)[: self._keep]])
            self._push_topk(row[columns], columns + first)

    def ranks(self) -> np.ndarray:
        """Ranks of the matches from 1, int64 [m], ascending; at equal similarity a match ranks last."""
        return self.num_above[::-1] + np.arange(1, len(self.num_above) + 1)

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """Similarities and columns of the K nearest; at equal similarity other labels, then lower columns first."""
        (others, other_columns), (matches, match_columns) = self._nearest_others, self._nearest_matches
        similarity, columns = np.concatenate([others, matches]), np.concatenate([other_columns, match_columns])
        is_match = np.arange(len(columns)) >= len(others)
        order = np.lexsort((columns, is_match, -similarity))[: self._keep]
        return similarity[order], columns[order]

    def _floor(self, row: np.ndarray, bound: float) -> float:
        """Float32 similarities below this value can neither rank above a match nor be among the nearest."""
        floor = float(self._matches[0]) if len(self._matches) else np.inf
        if self._keep:
            floor = min(floor, self._kth_at_least(row))
        return max(_LOWEST, floor - 2 * bound)

    def _kth_at_least(self, row: np.ndarray) -> float:
        """A lower bound of the K-th largest similarity."""
        if len(self._nearest_others[0]) == self._keep:
            return float(self._nearest_others[0][-1])
        sample = row[:_SAMPLE]
        return float(np.partition(sample, -self._keep)[-self._keep]) if len(sample) >= self._keep else _LOWEST

    def _topk_floor(self, ascending: np.ndarray, bound: float) -> float:
        """Float32 similarities below this value are not among the K nearest."""
        if not self._keep:
            return np.inf
        known, floor = self._nearest_others[0], _LOWEST
        if len(known) == self._keep:
            floor = max(floor, known[-1] - bound)
        if len(ascending) >= self._keep:
            floor = max(floor, ascending[-self._keep] - 2 * bound)
        return floor

    def _push_topk(self, similarity: np.ndarray, columns: np.ndarray) -> None:
        known, known_columns = self._nearest_others
        similarity, columns = np.concatenate([known, similarity]), np.concatenate([known_columns, columns])
        order = np.lexsort((columns, -similarity))[: self._keep]
        self._nearest_others = similarity[order], columns[order]


def _sort_with_columns(row: np.ndarray, floor: float) -> np.ndarray:
    """Similarities from `floor` on, ascending, as float64 with their columns in the last bits.

    The columns change a similarity of at most 2 by at most w * 2**-50, w the length of the row.
    """
    kept = row >= np.float32(floor)
    if 2 * np.count_nonzero(kept) < len(row):
        columns = np.flatnonzero(kept)
        keys = row[columns].astype(np.float64)
    else:
        columns, keys = np.arange(len(row)), row.astype(np.float64)
    bits = keys.view(np.int64)
    bits |= columns
    keys.sort()
    return keys


def _columns(keys: np.ndarray) -> np.ndarray:
    """The columns that `_sort_with_columns` put into the last bits."""
    return keys.view(np.int64) & _COLUMN_BITS


def _num_at_least(ascending: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """For each of the ascending edges, the number of ascending values that are at least as large."""
    if len(edges) <= len(ascending):
        return len(ascending) - np.searchsorted(ascending, edges)
    reached = np.bincount(np.searchsorted(edges, ascending, side="right"), minlength=len(edges) + 1)
    return np.cumsum(reached[:0:-1])[::-1]


def _union(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The integers of all ranges [start, stop), once each and ascending; starts and stops must ascend."""
    starts = np.maximum(starts, np.concatenate([[0], stops[:-1]]))[: len(starts)]
    lengths = stops - starts
    return np.repeat(stops - np.cumsum(lengths), lengths) + np.arange(lengths.sum())
