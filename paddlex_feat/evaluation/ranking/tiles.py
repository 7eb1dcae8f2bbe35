"""Queries against a gallery, tile by tile: float32 products, and float64 where these leave a doubt."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np

from paddlex_feat.evaluation.ranking.exact_dot import Features, exact, split
from paddlex_feat.evaluation.ranking.rank_counter import HIDDEN, Standing

TOGETHER = 256  # queries whose similarities to a piece are computed in float64 at a time


class Gallery:
    """A gallery in the order of its labels, so that the matches of a query are neighbouring columns.

    Attributes:
        order: int64 [G], the gallery index of each column.
        features: of the gallery, no row longer than sqrt(2).
    """

    def __init__(self, rows: np.ndarray, labels: np.ndarray):
        self.order = np.argsort(labels, kind="stable")
        self._labels = labels[self.order]
        self.features = Features.together(rows, "gallery")

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


class Block:
    """Some queries, those of a label together, and how their matches stand as the gallery passes by.

    Args:
        query: float32 [n, D], no row longer than sqrt(2). labels: integers [n], ascending.
        hidden: for each query the columns that do not count.
        keep: how many of the nearest are remembered.
        bounds: of the error of products added up in float32 and in float64.
        piece: gallery images that are computed in float64 at a time.
    """

    def __init__(
        self,
        gallery: Gallery,
        query: np.ndarray,
        labels: np.ndarray,
        hidden: list[np.ndarray],
        keep: int,
        bounds: tuple[float, float],
        piece: int,
    ):
        self._gallery, self._query, self._wide, self._parts = gallery, query, query.astype(np.float64), split(query)
        self._labels, self._hidden, self._keep, self._bounds = labels, hidden, keep, bounds
        self._piece = piece
        self._first, self._last = gallery.matches(labels)
        self.dim = query.shape[1]
        self.standings: list[Standing] = []

    def see(self, tile: np.ndarray, start: int, buffer: np.ndarray) -> None:
        """Take in the columns from `start` on.

        Args:
            tile: float32 [w, D]. buffer: float32 [at least n, at least w], for the products.
        """
        self.standings = self.standings or self._of_labels()
        product = np.matmul(self._query, tile.T, out=buffer[: len(self._query), : len(tile)])
        doubtful = []
        for i, (row, standing) in enumerate(zip(product, self.standings, strict=True)):
            self._hide(row, i, start)
            double, exactly = partial(self._double, tile, i), partial(self._exactly, tile, i)
            if not standing.see(row, start, double, exactly):
                doubtful.append(i)
        for queries in (doubtful[i : i + TOGETHER] for i in range(0, len(doubtful), TOGETHER)):
            for column in range(0, len(tile), self._piece):
                self._see_in_float64(queries, tile[column : column + self._piece], start + column)

    def _see_in_float64(self, queries: list[int], piece: np.ndarray, start: int) -> None:
        close = []
        similarity = self._wide[queries] @ piece.astype(np.float64).T
        for row, i in zip(similarity, queries, strict=True):
            self._hide(row, i, start)
            if not self.standings[i].see_double(row, start, partial(self._exactly, piece, i)):
                close.append(i)
        if not close:
            return
        for row, i in zip(self._exact(close, piece), close, strict=True):
            self._hide(row, i, start)
            self.standings[i].see_exact(row, start)

    def _double(self, tile: np.ndarray, i: int, columns: np.ndarray) -> np.ndarray:
        parts = (columns[a : a + self._piece] for a in range(0, len(columns), self._piece))
        return np.concatenate([tile[part].astype(np.float64) @ self._wide[i] for part in parts])

    def _exactly(self, tile: np.ndarray, i: int, columns: np.ndarray) -> np.ndarray:
        parts = (columns[a : a + self._piece] for a in range(0, len(columns), self._piece))
        return np.concatenate([self._exact([i], tile[part])[0] for part in parts])

    def _exact(self, queries: slice | list[int], rows: np.ndarray) -> np.ndarray:
        return exact(self._parts[:, queries], rows)

    def _hide(self, row: np.ndarray, i: int, start: int) -> None:
        """Matches, which are known already, and a query's own file do not count."""
        row[max(self._first[i] - start, 0) : max(self._last[i] - start, 0)] = HIDDEN
        if len(self._hidden[i]):
            inside = self._hidden[i] - start
            row[inside[(inside >= 0) & (inside < len(row))]] = HIDDEN

    def _of_labels(self) -> list[Standing]:
        """The exact similarities of all matches, label by label."""
        borders = [0, *(np.flatnonzero(np.diff(self._labels)) + 1).tolist(), len(self._labels)]
        return [standing for a, b in pairwise(borders) for standing in self._of_label(slice(a, b))]

    def _of_label(self, queries: slice) -> list[Standing]:
        first, last = int(self._first[queries.start]), int(self._last[queries.start])
        columns = np.arange(first, last)
        similarity = np.empty((queries.stop - queries.start, len(columns)))
        for start in range(first, last, self._piece):
            tile = self._gallery.tile(start, min(self._piece, last - start))
            similarity[:, start - first : start - first + len(tile)] = self._exact(queries, tile)
        made = []
        for row, hidden in zip(similarity, self._hidden[queries], strict=True):
            seen = ~np.isin(columns, hidden) if len(hidden) else slice(None)
            made.append(Standing(row[seen], columns[seen], self._keep, self._bounds))
        return made
