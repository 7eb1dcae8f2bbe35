"""Queries against a gallery, tile by tile: float32 products, and float64 where these leave a doubt."""

from __future__ import annotations

from concurrent.futures import Executor
from functools import partial
from itertools import pairwise

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

    def tile(self, start: int, width: int) -> np.ndarray:
        """Columns start … start + width - 1, float32 [w, D]."""
        return self.features.take(self.order[start : start + width])

    def columns_of(self, indices: np.ndarray) -> np.ndarray:
        """Columns of gallery indices."""
        inverse = np.empty(len(self.order), np.int64)
        inverse[self.order] = np.arange(len(self.order))
        return inverse[indices]


class Block:
    """Some queries, those of a label together, and how their matches stand.

    Args:
        query: float32 [n, D], no row longer than sqrt(2). labels: integers [n], ascending.
        hidden: for each query the columns that do not count.
        keep: how many of the nearest are remembered. width: columns of a tile.
        bounds: of the error of products added up in float32 and in float64.
    """

    def __init__(
        self,
        gallery: Gallery,
        query: np.ndarray,
        labels: np.ndarray,
        hidden: list[np.ndarray],
        keep: int,
        width: int,
        bounds: tuple[float, float],
    ):
        self._gallery, self._query, self._wide = gallery, query, query.astype(np.float64)
        self._high, self._low = split(self._wide)
        self._labels, self._hidden, self._keep, self._width, self._bounds = labels, hidden, keep, width, bounds
        self._first, self._last = gallery.matches(labels)

    def compare(self, pool: Executor) -> list[Standing]:
        """Go through the whole gallery."""
        standings = self._standings(pool)
        buffer = np.empty((len(self._query), self._width), np.float32)
        parts = [range(i, min(i + _TOGETHER, len(self._query))) for i in range(0, len(self._query), _TOGETHER)]
        for start in range(0, len(self._gallery), self._width):
            tile = self._gallery.tile(start, self._width)
            similarity = np.matmul(self._query, tile.T, out=buffer[:, : len(tile)])
            work = partial(self._see, standings, tile, similarity, start)
            doubtful = [i for rows in pool.map(work, parts) for i in rows]
            self._see_exactly(doubtful, standings, tile, start)
        return standings

    def _see(
        self, standings: list[Standing], tile: np.ndarray, similarity: np.ndarray, start: int, rows: range
    ) -> list[int]:
        """Take in float32 similarities; returns the queries for which they leave too much in doubt."""
        doubtful = []
        for i in rows:
            self._hide(similarity[i], i, start)
            double, exactly = partial(self._double, tile, i), partial(self._exact, tile, slice(i, i + 1))
            if not standings[i].see(similarity[i], start, double, lambda columns: exactly(columns)[0]):  # noqa: B023
                doubtful.append(i)
        return doubtful

    def _double(self, tile: np.ndarray, i: int, columns: np.ndarray) -> np.ndarray:
        return tile[columns].astype(np.float64) @ self._wide[i]

    def _exact(self, tile: np.ndarray, rows: slice | list[int], columns: np.ndarray | slice) -> np.ndarray:
        return exact((self._high[rows], self._low[rows]), tile[columns])

    def _see_exactly(self, doubtful: list[int], standings: list[Standing], tile: np.ndarray, start: int) -> None:
        """As `_see`, all in float64 and in smaller pieces, which need not be large to be fast."""
        step = -(-self._width // 8)
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
        labels = [slice(a, b) for a, b in pairwise(borders)]
        return [standing for part in pool.map(self._of_label, labels) for standing in part]

    def _of_label(self, rows: slice) -> list[Standing]:
        first, last = int(self._first[rows.start]), int(self._last[rows.start])
        columns = np.arange(first, last)
        similarity = np.empty((rows.stop - rows.start, len(columns)))
        for start in range(first, last, self._width):
            tile = self._gallery.tile(start, min(self._width, last - start))
            similarity[:, start - first : start - first + len(tile)] = self._exact(tile, rows, slice(None))
        made = []
        for row, hidden in zip(similarity, self._hidden[rows], strict=True):
            seen = ~np.isin(columns, hidden) if len(hidden) else slice(None)
            made.append(Standing(row[seen], columns[seen], self._keep, self._bounds))
        return made
