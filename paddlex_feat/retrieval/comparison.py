"""Queries against a gallery, tile by tile: float32 products, and float64 where these leave a doubt."""

from __future__ import annotations

import itertools
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np

from paddlex_feat.retrieval.products import Features, exact, split
from paddlex_feat.retrieval.standing import HIDDEN, Standing

_TOGETHER = 32  # queries that a thread takes at a time


class Gallery:
    """A gallery in the order of its labels, so that the matches of a query are neighbouring columns.

    Attributes:
        order: int64 [G], the gallery index of each column.
        features: of the gallery, no row longer than sqrt(2).
    """

    def __init__(self, rows: np.ndarray, labels: np.ndarray):
        self.order = np.argsort(labels, kind="stable")
        self._labels = labels[self.order]
        self.features = Features.together(rows)

    def __len__(self) -> int:
        return len(self.order)

    def matches(self, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """First column of each label, and the column behind its last: int64 [n] both."""
        return np.searchsorted(self._labels, labels), np.searchsorted(self._labels, labels, side="right")

    def tile(self, start: int, width: int, out: np.ndarray | None = None) -> np.ndarray:
        """Columns start … start + width - 1, float32 [w, D], the first rows of `out` if it is given."""
        return self.features.take(self.order[start : start + width], out)

    def columns_of(self, indices: np.ndarray) -> np.ndarray:
        """Columns of gallery indices."""
        inverse = np.empty(len(self.order), np.int64)
        inverse[self.order] = np.arange(len(self.order))
        return inverse[indices]


@dataclass(frozen=True)
class Sizes:
    """How many queries are ranked at a time, and of how many queries and gallery columns a product is."""

    queries: int
    rows: int
    columns: int


class Block:
    """Some queries, those of a label together, and how their matches stand.

    Args:
        query: float32 [n, D], no row longer than sqrt(2). labels: integers [n], ascending.
        hidden: for each query the columns that do not count.
        keep: how many of the nearest are remembered. sizes: of the pieces.
        bounds: of the error of products added up in float32 and in float64.
    """

    def __init__(
        self,
        gallery: Gallery,
        query: np.ndarray,
        labels: np.ndarray,
        hidden: list[np.ndarray],
        keep: int,
        sizes: Sizes,
        bounds: tuple[float, float],
    ):
        self._gallery, self._query, self._wide = gallery, query, query.astype(np.float64)
        self._high, self._low = split(self._wide)
        self._labels, self._hidden, self._keep, self._sizes, self._bounds = labels, hidden, keep, sizes, bounds
        self._first, self._last = gallery.matches(labels)

    def compare(self, pool: Executor) -> list[Standing]:
        """Go through the whole gallery: while one product is counted on, the next is computed."""
        width, rows = self._sizes.columns, self._sizes.rows
        tiles = [np.empty((width, self._query.shape[1]), np.float32) for _ in range(2)]
        buffers = itertools.cycle([np.empty((rows, width), np.float32) for _ in range(2)])
        with ThreadPoolExecutor(1, thread_name_prefix="count") as counter:
            standings = counter.submit(self._standings, pool)
            counted: Future[None] | None = None
            for number, start in enumerate(range(0, len(self._gallery), width)):
                tile = self._gallery.tile(start, width, tiles[number % 2])
                for first in range(0, len(self._query), rows):
                    query = self._query[first : first + rows]
                    product = np.matmul(query, tile.T, out=next(buffers)[: len(query), : len(tile)])
                    if counted:
                        counted.result()
                    counted = counter.submit(self._count, standings.result(), tile, product, first, start, pool)
            if counted:
                counted.result()
        return standings.result()

    def _count(
        self,
        standings: list[Standing],
        tile: np.ndarray,
        product: np.ndarray,
        first: int,
        start: int,
        pool: Executor,
    ) -> None:
        """Take in the similarities of the queries from `first` on and the columns from `start` on."""
        see = partial(self._see, standings, tile, product, first, start)
        parts = [range(i, min(i + _TOGETHER, len(product))) for i in range(0, len(product), _TOGETHER)]
        doubtful = [i for rows in pool.map(see, parts) for i in rows]
        self._see_exactly(doubtful, standings, tile, start)

    def _see(
        self, standings: list[Standing], tile: np.ndarray, product: np.ndarray, first: int, start: int, rows: range
    ) -> list[int]:
        """Some rows of a product; returns the queries for which float32 leaves too much in doubt."""
        doubtful = []
        for row in rows:
            i = first + row
            self._hide(product[row], i, start)
            double, exactly = partial(self._double, tile, i), partial(self._exact, tile, slice(i, i + 1))
            if not standings[i].see(product[row], start, double, lambda columns: exactly(columns)[0]):  # noqa: B023
                doubtful.append(i)
        return doubtful

    def _double(self, tile: np.ndarray, i: int, columns: np.ndarray) -> np.ndarray:
        return tile[columns].astype(np.float64) @ self._wide[i]

    def _exact(self, tile: np.ndarray, rows: slice | list[int], columns: np.ndarray | slice) -> np.ndarray:
        return exact((self._high[rows], self._low[rows]), tile[columns])

    def _see_exactly(self, doubtful: list[int], standings: list[Standing], tile: np.ndarray, start: int) -> None:
        """As `_see`, all in float64 and in smaller pieces, which need not be large to be fast."""
        step = -(-self._sizes.columns // 8)
        for rows in (doubtful[i : i + 8 * _TOGETHER] for i in range(0, len(doubtful), 8 * _TOGETHER)):
            for column in range(0, len(tile), step):
                similarity = self._exact(tile, rows, slice(column, column + step))
                for row, i in zip(similarity, rows, strict=True):
                    self._hide(row, i, start + column)
                    standings[i].see_exact(row, start + column)

    def _hide(self, row: np.ndarray, i: int, start: int) -> None:
        """Matches, which are known already, and a query's own file do not count."""
        row[max(self._first[i] - start, 0) : max(self._last[i] - start, 0)] = HIDDEN
        if len(self._hidden[i]):
            inside = self._hidden[i] - start
            row[inside[(inside >= 0) & (inside < len(row))]] = HIDDEN

    def _standings(self, pool: Executor) -> list[Standing]:
        """Exact similarities of all matches, label by label."""
        borders = [0, *(np.flatnonzero(np.diff(self._labels)) + 1).tolist(), len(self._labels)]
        labels = [slice(a, b) for a, b in itertools.pairwise(borders)]
        return [standing for part in pool.map(self._of_label, labels) for standing in part]

    def _of_label(self, rows: slice) -> list[Standing]:
        first, last = int(self._first[rows.start]), int(self._last[rows.start])
        columns = np.arange(first, last)
        similarity = np.empty((rows.stop - rows.start, len(columns)))
        for start in range(first, last, self._sizes.columns):
            tile = self._gallery.tile(start, min(self._sizes.columns, last - start))
            similarity[:, start - first : start - first + len(tile)] = self._exact(tile, rows, slice(None))
        made = []
        for row, hidden in zip(similarity, self._hidden[rows], strict=True):
            seen = ~np.isin(columns, hidden) if len(hidden) else slice(None)
            made.append(Standing(row[seen], columns[seen], self._keep, self._bounds))
        return made
