"""One query against a gallery that passes by in tiles: what stands before its matches, what stands first."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

Products = Callable[[np.ndarray], np.ndarray]  # columns -> float64, of the same length
HIDDEN = -8.0  # stands for the similarity of a column that does not count: no row is longer than sqrt(2)
_LOWEST = -4.0
_LAST_BITS = 2**29 - 1  # of a float64, empty where it comes from a float32
_SAMPLE = 1024  # columns that tell how similar the nearest are at least, before any is known
_HEAVY = 16  # a tile of whose columns more than a 16th are in doubt is cheaper in float64 as a whole


class Standing:
    """Counts, for each match, the images of other labels whose similarity is at least as large.

    Args:
        similarity: exact, float64 [m], of the matches. columns: int64 [m], where they are in the gallery.
        keep: how many of the nearest images are remembered.
        bounds: how far a product added up in float32, and in float64, can be from the exact one.

    Attributes:
        before: int64 [m], the counts, for the matches in ascending order of similarity.
        first_match: similarity and column of the most similar match; nan and -1 where there is none.
    """

    def __init__(self, similarity: np.ndarray, columns: np.ndarray, keep: int, bounds: tuple[float, float]):
        order = np.lexsort((columns, -similarity))[: max(keep, 1)]
        self._matches_first = similarity[order], columns[order]
        self.first_match = (float(similarity[order[0]]), int(columns[order[0]])) if len(order) else (np.nan, -1)
        self._others_first = np.empty(0), np.empty(0, np.int64)
        self._keep, (self._bound, self._double_bound) = keep, bounds
        self._exact = np.sort(similarity)
        self.before = np.zeros(len(similarity), np.int64)

    def see(self, row: np.ndarray, first: int, double: Products, exact: Products) -> bool:
        """Take in a tile of float32 similarities.

        Args:
            row: float32 [w], of the columns from `first` on; HIDDEN where one does not count.
            double, exact: similarities of some of these columns, added up in float64, and exact.

        Returns False, and has changed nothing, if too many columns are in doubt: `see_double` then.
        """
        if len(self._exact) > len(row) // _HEAVY:
            return False  # as many matches leave hardly a column without doubt
        bound = self._bound + len(row) * 2.0**-50  # a similarity of at most 2 carries its column in the last bits
        keys = _sorted(row, self._floor(row, bound))
        decide = partial(self._decide, double=double, exact=exact)
        return self._take_in(keys, lambda places: _columns(keys[places]), bound, decide, exact, first, len(row))

    def see_double(self, row: np.ndarray, first: int, exact: Products) -> bool:
        """Take in similarities added up in float64; otherwise as `see`, with `see_exact` to follow."""
        if row.max() - row.min(where=row >= _LOWEST, initial=np.inf) < self._double_bound:
            return False  # all are copies of one image, or the network has collapsed
        order = np.argsort(row)
        return self._take_in(row[order], order.__getitem__, self._double_bound, exact, exact, first, len(row))

    def see_exact(self, row: np.ndarray, first: int) -> None:
        """Take in exact similarities, float64 [w]; otherwise as `see`."""
        ascending = np.sort(row[row >= _LOWEST])
        self.before += _at_least(ascending, self._exact)
        if len(ascending) and self._keep:
            least = ascending[-min(self._keep, len(ascending))]
            columns = np.concatenate([np.flatnonzero(row > least), np.flatnonzero(row == least)[: self._keep]])
            self._remember(row[columns], columns + first)

    def _take_in(
        self,
        ascending: np.ndarray,
        columns: Callable[[np.ndarray | slice], np.ndarray],
        bound: float,
        decide: Products,
        exact: Products,
        first: int,
        width: int,
    ) -> bool:
        """Count similarities that are known up to `bound`.

        Args:
            columns: of places among the ascending similarities.
            decide: columns -> similarities that are on the right side of every match.
        """
        starts, stops = (len(ascending) - _at_least(ascending, self._exact + b) for b in (-bound, bound))
        places = _union(starts, stops)
        promising = columns(slice(np.searchsorted(ascending, self._bar(ascending, bound)), None))
        if len(places) + len(promising) > self._keep + width // _HEAVY:
            return False
        self.before += len(ascending) - stops
        if len(places):
            # What of these stands at `stops` or behind was counted, and does so by its exact similarity too.
            decided = np.sort(decide(columns(places)))
            self.before += np.searchsorted(places, stops) - (len(decided) - _at_least(decided, self._exact))
        if len(promising):
            self._remember(exact(promising), promising + first)
        return True

    def _decide(self, columns: np.ndarray, double: Products, exact: Products) -> np.ndarray:
        """Similarities that are on the right side of every match: exact where float64 is too close to call."""
        values = double(columns)
        below, above = self._exact - self._double_bound, self._exact + self._double_bound
        close = np.searchsorted(below, values, side="right") > np.searchsorted(above, values, side="right")
        if close.any():
            values[close] = exact(columns[close])
        return values

    def ranks(self) -> np.ndarray:
        """Ranks of the matches from 1, int64 [m], ascending. At equal similarity a match stands behind."""
        return self.before[::-1] + np.arange(1, len(self.before) + 1)

    def nearest(self) -> tuple[np.ndarray, np.ndarray]:
        """The first `keep` similarities and columns; at equal similarity other labels, then lower columns first."""
        (theirs, their_columns), (ours, our_columns) = self._others_first, self._matches_first
        similarity, columns = np.concatenate([theirs, ours]), np.concatenate([their_columns, our_columns])
        match = np.arange(len(columns)) >= len(theirs)
        order = np.lexsort((columns, match, -similarity))[: self._keep]
        return similarity[order], columns[order]

    def _floor(self, row: np.ndarray, bound: float) -> float:
        """Approximate similarities below this one matter neither for a match nor for the nearest."""
        floor = float(self._exact[0]) if len(self._exact) else np.inf
        if self._keep:
            floor = min(floor, self._last_kept(row))
        return max(_LOWEST, floor - 2 * bound)

    def _last_kept(self, row: np.ndarray) -> float:
        """A similarity that the last one of the nearest reaches at least."""
        if len(self._others_first[0]) == self._keep:
            return float(self._others_first[0][-1])
        some = row[:_SAMPLE]
        return float(np.partition(some, -self._keep)[-self._keep]) if len(some) >= self._keep else _LOWEST

    def _bar(self, ascending: np.ndarray, bound: float) -> float:
        """Approximate similarities below this one do not belong to the nearest."""
        if not self._keep:
            return np.inf
        known, bar = self._others_first[0], _LOWEST
        if len(known) == self._keep:
            bar = max(bar, known[-1] - bound)
        if len(ascending) >= self._keep:
            bar = max(bar, ascending[-self._keep] - 2 * bound)
        return bar

    def _remember(self, similarity: np.ndarray, columns: np.ndarray) -> None:
        known, known_columns = self._others_first
        similarity, columns = np.concatenate([known, similarity]), np.concatenate([known_columns, columns])
        order = np.lexsort((columns, -similarity))[: self._keep]
        self._others_first = similarity[order], columns[order]


def _sorted(row: np.ndarray, floor: float) -> np.ndarray:
    """Similarities from `floor` on, ascending, as float64 numbers that carry their columns in the last bits."""
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
    """What `_sorted` has put into the last bits."""
    return keys.view(np.int64) & _LAST_BITS


def _at_least(ascending: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """How many of the ascending values are at least as large as each of the edges, which ascend too."""
    if len(edges) <= len(ascending):
        return len(ascending) - np.searchsorted(ascending, edges)
    reached = np.bincount(np.searchsorted(edges, ascending, side="right"), minlength=len(edges) + 1)
    return np.cumsum(reached[:0:-1])[::-1]


def _union(starts: np.ndarray, stops: np.ndarray) -> np.ndarray:
    """The integers of all ranges [start, stop), once and ascending; starts and stops ascend too."""
    starts = np.maximum(starts, np.concatenate([[0], stops[:-1]]))[: len(starts)]
    lengths = stops - starts
    return np.repeat(stops - np.cumsum(lengths), lengths) + np.arange(lengths.sum())
