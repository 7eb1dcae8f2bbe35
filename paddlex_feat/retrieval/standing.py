"""One query against a gallery that passes by in tiles: what stands before its matches, what stands first."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Products = Callable[[np.ndarray], np.ndarray]  # columns -> float64, of the same length
HIDDEN = -8.0  # stands for the similarity of a column that does not count: no row is longer than sqrt(2)
_LOWEST = np.float32(-4)
_LARGEST_TABLE = 2**20
_HEAVY = 16  # a tile of whose columns more than a 16th are in doubt is cheaper in float64 as a whole


class Standing:
    """Counts, for each match, the images of other labels whose similarity is at least as large.

    Args:
        similarity: exact, float64 [m], of the matches. columns: int64 [m], where they are in the gallery.
        keep: how many of the nearest images are remembered.
        bounds: how far a product added up in float32, and in float64, can be from the exact one.

    Attributes:
        before: int64 [m], the counts, for the matches in ascending order of similarity.
    """

    def __init__(self, similarity: np.ndarray, columns: np.ndarray, keep: int, bounds: tuple[float, float]):
        order = np.lexsort((columns, -similarity))[:keep]
        self._matches_first = similarity[order], columns[order]
        self._others_first = np.empty(0), np.empty(0, np.int64)
        self._keep, (self._bound, self._double_bound) = keep, bounds
        self._exact = np.sort(similarity)
        self._low = _down(self._exact - self._bound)
        self._high = -_down(-(self._exact + self._bound))
        self.before = np.zeros(len(similarity), np.int64)

    def see(self, row: np.ndarray, first: int, double: Products, exact: Products) -> bool:
        """Take in a tile of float32 similarities.

        Args:
            row: float32 [w], of the columns from `first` on; HIDDEN where one does not count.
            double, exact: similarities of some of these columns, added up in float64, and exact.

        Returns False, and has changed nothing, if too many columns are in doubt: `see_exact` then.
        """
        kept = row >= self._floor()
        columns = np.flatnonzero(kept) if 2 * np.count_nonzero(kept) < len(row) else None  # else all, uncopied
        values = row if columns is None else row[columns]
        ascending = np.sort(values)
        maybe, sure = (len(ascending) - np.searchsorted(ascending, edges) for edges in (self._low, self._high))
        unclear = maybe > sure
        doubtful = _near(values, self._low[unclear], self._high[unclear])
        promising = self._promising(values, ascending)
        if len(doubtful) + len(promising) > self._keep + len(row) // _HEAVY:
            return False
        if len(doubtful):
            believed = np.sort(values[doubtful])
            decided = np.sort(self._decide(doubtful if columns is None else columns[doubtful], double, exact))
            # What of these stood surely before a match was counted, and does so by its exact similarity too.
            sure += np.searchsorted(believed, self._high) - np.searchsorted(decided, self._exact)
        self.before += sure
        if len(promising):
            places = promising if columns is None else columns[promising]
            self._remember(exact(places), places + first)
        return True

    def _decide(self, columns: np.ndarray, double: Products, exact: Products) -> np.ndarray:
        """Similarities that are on the right side of every match: exact where float64 is too close to call."""
        values = double(columns)
        close = _near(values, self._exact - self._double_bound, self._exact + self._double_bound)
        if len(close):
            values[close] = exact(columns[close])
        return values

    def see_exact(self, row: np.ndarray, first: int) -> None:
        """Take in a tile of exact similarities, float64 [w]; otherwise as `see`."""
        ascending = np.sort(row[row >= _LOWEST])
        self.before += len(ascending) - np.searchsorted(ascending, self._exact)
        if len(ascending) and self._keep:
            least = ascending[-min(self._keep, len(ascending))]
            columns = np.concatenate([np.flatnonzero(row > least), np.flatnonzero(row == least)[: self._keep]])
            self._remember(row[columns], columns + first)

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

    def _floor(self) -> np.float32:
        """Approximate similarities below this one matter neither for a match nor for the nearest."""
        similarity = self._others_first[0]
        if len(similarity) < self._keep:
            return _LOWEST
        lows = [*self._low[:1], *(_down(similarity[-1:] - self._bound) if self._keep else ())]
        return min(lows, default=np.float32(np.inf))

    def _promising(self, values: np.ndarray, ascending: np.ndarray) -> np.ndarray:
        """Indices of approximate similarities that may belong to the nearest."""
        if not self._keep or not len(ascending):
            return np.empty(0, np.int64)
        known, bars = self._others_first[0], [float(_LOWEST)]
        if len(known) == self._keep:
            bars.append(known[-1] - self._bound)
        if len(ascending) >= self._keep:
            bars.append(float(ascending[-self._keep]) - 2 * self._bound)
        bar = _down(np.array(max(bars)))
        return np.flatnonzero(values >= bar) if ascending[-1] >= bar else np.empty(0, np.int64)

    def _remember(self, similarity: np.ndarray, columns: np.ndarray) -> None:
        known, known_columns = self._others_first
        similarity, columns = np.concatenate([known, similarity]), np.concatenate([known_columns, columns])
        order = np.lexsort((columns, -similarity))[: self._keep]
        self._others_first = similarity[order], columns[order]


def _down(values: np.ndarray) -> np.ndarray:
    """float32 values that are not above the float64 ones."""
    return np.nextafter(values.astype(np.float32), np.float32(-np.inf))


def _near(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Indices of values with low[j] <= value < high[j] for any j; both ascending, and all intervals of a width."""
    if not len(low):
        return np.empty(0, np.int64)
    scale, found = 2 / (high - low).min(), np.arange(len(values))
    if (high[-1] - low[0]) * scale <= _LARGEST_TABLE:
        # First by a table of bins half as wide as an interval: a binary search for every value is slow.
        def bins(x: np.ndarray) -> np.ndarray:  # never descending as x ascends: none of an interval falls outside
            return ((x - low[0]) * scale).astype(np.intp) + 1

        first, last = bins(low), bins(high)
        marked = np.zeros(last[-1] + 2, bool)
        for step in range(int((last - first).max()) + 1):
            marked[np.minimum(first + step, last)] = True
        found = np.flatnonzero(marked.take(bins(values), mode="clip"))
        values = values[found]
    return found[np.searchsorted(low, values, side="right") > np.searchsorted(high, values, side="right")]
