"""Compare blocks of queries with tiles of the gallery: float32 products, and exact ones where these leave a doubt."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np

from paddlex_feat.evaluation.ranking.exact_dot import error_bound, exact_dot, take_rounded
from paddlex_feat.evaluation.ranking.rank_counter import MASKED, QueryRankCounter

EXACT_ROWS = 256  # queries of an exact product
_GATHERED = 256  # rows of a tile that are copied for one query at a time: few enough for a cache


class Gallery:
    """A gallery in the order of its labels, so that the matches of a query are neighbouring columns.

    Args:
        rows: float32 [G, D], unit rows, an array or a memory-mapped file; not copied.
        labels: int64 [G].

    Attributes:
        order: int64 [G], the gallery index of each column.
        dim: D.
    """

    def __init__(self, rows: np.ndarray, labels: np.ndarray):
        self.order = np.argsort(labels, kind="stable")
        self.dim = rows.shape[1]
        self._labels = labels[self.order]
        self._rows = rows

    def __len__(self) -> int:
        return len(self.order)

    def matches(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The first column of each label, and the column after its last: int64 [n] both."""
        return np.searchsorted(self._labels, labels), np.searchsorted(self._labels, labels, side="right")

    def tile(self, start: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
        """Rounded rows of the columns from `start` on, at most `width`: float32 [w, D], in `out` if it is given."""
        return take_rounded(self._rows, self.order[start : start + width], out)

    def columns_of(self, indices: np.ndarray) -> np.ndarray:
        """Columns of gallery indices."""
        inverse = np.empty(len(self.order), np.int64)
        inverse[self.order] = np.arange(len(self.order))
        columns: np.ndarray = inverse[indices]
        return columns


class Block:
    """Some queries, sorted by label, and a rank counter for each of them.

    Args:
        gallery: the whole gallery.
        query: float32 [n, D], rows from `take_rounded`.
        labels: int64 [n], ascending.
        excluded_columns: for each query, gallery columns that do not count.
        keep: number of nearest images to keep.
        exact_width: gallery images of an exact product.

    Attributes:
        counters: one a query; empty before the first tile.
    """

    def __init__(
        self,
        gallery: Gallery,
        query: np.ndarray,
        labels: np.ndarray,
        excluded_columns: list[np.ndarray],
        keep: int,
        exact_width: int,
    ):
        self._gallery, self._query, self._query64 = gallery, query, query.astype(np.float64)
        self._labels, self._excluded_columns, self._keep = labels, excluded_columns, keep
        self._exact_width = exact_width
        self._first, self._last = gallery.matches(labels)
        self.counters: list[QueryRankCounter] = []

    def count_tile(self, tile: np.ndarray, start: int, buffer: np.ndarray) -> None:
        """Count the gallery columns from `start` on.

        Args:
            tile: float32 [w, D], their rows, from `Gallery.tile`.
            start: the first column.
            buffer: float32 [at least n, at least w], for the products.
        """
        self.counters = self.counters or self._new_counters()
        product = np.matmul(self._query, tile.T, out=buffer[: len(self._query), : len(tile)])
        in_doubt = []
        for i, (row, counter) in enumerate(zip(product, self.counters, strict=True)):
            self._mask(row, i, start)
            if not counter.update(row, start, partial(self._exact_dots, i, tile)):
                in_doubt.append(i)
        for queries in (in_doubt[i : i + EXACT_ROWS] for i in range(0, len(in_doubt), EXACT_ROWS)):
            for column in range(0, len(tile), self._exact_width):
                self._count_exactly(queries, tile[column : column + self._exact_width], start + column)

    def _count_exactly(self, queries: list[int], tile: np.ndarray, start: int) -> None:
        for row, i in zip(exact_dot(self._query64[queries], tile), queries, strict=True):
            self._mask(row, i, start)
            self.counters[i].update_exact(row, start)

    def _exact_dots(self, i: int, tile: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Exact similarities of query i with some rows of a tile, float64 [len(columns)]."""
        step = min(_GATHERED, self._exact_width)
        parts = (columns[a : a + step] for a in range(0, len(columns), step))
        return np.concatenate([exact_dot(np.take(tile, part, axis=0), self._query64[i]) for part in parts])

    def _mask(self, row: np.ndarray, i: int, start: int) -> None:
        """Exclude the matches, whose similarities the counter has already, and a query's excluded columns."""
        row[max(self._first[i] - start, 0) : max(self._last[i] - start, 0)] = MASKED
        if len(self._excluded_columns[i]):
            inside = self._excluded_columns[i] - start
            row[inside[(inside >= 0) & (inside < len(row))]] = MASKED

    def _new_counters(self) -> list[QueryRankCounter]:
        """Counters of all queries, made label by label."""
        borders = [0, *(np.flatnonzero(np.diff(self._labels)) + 1).tolist(), len(self._labels)]
        return [counter for a, b in pairwise(borders) for counter in self._counters_of_label(slice(a, b))]

    def _counters_of_label(self, queries: slice) -> list[QueryRankCounter]:
        first, last = int(self._first[queries.start]), int(self._last[queries.start])
        columns = np.arange(first, last)
        similarity = np.empty((queries.stop - queries.start, len(columns)))
        for start in range(first, last, self._exact_width):
            tile = self._gallery.tile(start, min(self._exact_width, last - start))
            similarity[:, start - first : start - first + len(tile)] = exact_dot(self._query64[queries], tile)
        bound = error_bound(self._gallery.dim)
        counters = []
        for row, excluded in zip(similarity, self._excluded_columns[queries], strict=True):
            counted = ~np.isin(columns, excluded) if len(excluded) else slice(None)
            counters.append(QueryRankCounter(row[counted], columns[counted], self._keep, bound))
        return counters
