"""Queries against a gallery, tile by tile: float32 products, and float64 where these leave a doubt."""

from __future__ import annotations

from concurrent.futures import Executor
from itertools import pairwise

import numpy as np

from paddlex_feat.retrieval.products import Features
from paddlex_feat.retrieval.standing import HIDDEN, Standing

_TOGETHER = 32  # queries that a thread takes at a time


class Gallery:
    """A gallery in the order of its labels, so that the matches of a query are neighbouring columns.

    Attributes:
        order: int64 [G], the gallery index of each column.
        features: on the grid.
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
        query: float32 [n, D], on the grid. labels: integers [n], ascending.
        hidden: for each query the columns that do not count.
        keep: how many of the nearest are remembered. width: columns of a tile.
        bound: of the error of a float32 product.
    """

    def __init__(
        self,
        gallery: Gallery,
        query: np.ndarray,
        labels: np.ndarray,
        hidden: list[np.ndarray],
        keep: int,
        width: int,
        bound: float,
    ):
        self._gallery, self._query, self._wide = gallery, query, query.astype(np.float64)
        self._labels, self._hidden, self._keep, self._width, self._bound = labels, hidden, keep, width, bound
        self._first, self._last = gallery.matches(labels)

    def compare(self, pool: Executor) -> list[Standing]:
        """Go through the whole gallery."""
        standings = self._standings(pool)
        buffer = np.empty((len(self._query), self._width), np.float32)
        for start in range(0, len(self._gallery), self._width):
            tile = self._gallery.tile(start, self._width)
            similarity = np.matmul(self._query, tile.T, out=buffer[:, : len(tile)])
            self._hide(similarity, slice(None), start)

            def see(rows: range, start: int = start, tile: np.ndarray = tile) -> list[int]:
                def exact(columns: np.ndarray) -> np.ndarray:
                    return tile[columns].astype(np.float64) @ self._wide[i]

                doubtful = []
                for i in rows:
                    if not standings[i].see(buffer[i, : len(tile)], start, exact):
                        doubtful.append(i)
                return doubtful

            self._see_exactly(
                [i for rows in pool.map(see, _parts(len(standings))) for i in rows], standings, tile, start
            )
        return standings

    def _see_exactly(self, doubtful: list[int], standings: list[Standing], tile: np.ndarray, start: int) -> None:
        if not doubtful:
            return
        wide = tile.astype(np.float64).T
        for part in (doubtful[i : i + _TOGETHER] for i in range(0, len(doubtful), _TOGETHER)):
            similarity = self._wide[part] @ wide
            self._hide(similarity, part, start)
            for row, i in zip(similarity, part, strict=True):
                standings[i].see_exact(row, start)

    def _hide(self, similarity: np.ndarray, rows: slice | list[int], start: int) -> None:
        """Matches, which are known already, and a query's own file do not count."""
        numbers = np.arange(len(self._query))[rows].tolist()
        for row, i in zip(similarity, numbers, strict=True):
            row[max(self._first[i] - start, 0) : max(self._last[i] - start, 0)] = HIDDEN
            if len(self._hidden[i]):
                inside = self._hidden[i] - start
                row[inside[(inside >= 0) & (inside < len(row))]] = HIDDEN

    def _standings(self, pool: Executor) -> list[Standing]:
        """Exact similarities of all matches, label by label."""

        def of_label(rows: range) -> list[Standing]:
            columns = np.arange(self._first[rows[0]], self._last[rows[0]])
            parts = (
                [
                    self._wide[rows[0] : rows[-1] + 1]
                    @ self._gallery.tile(a, min(self._width, columns[-1] + 1 - a)).T.astype(np.float64)
                    for a in range(columns[0], columns[-1] + 1, self._width)
                ]
                if len(columns)
                else []
            )
            similarity = np.concatenate(parts, axis=1) if parts else np.empty((len(rows), 0))
            made = []
            for row, i in zip(similarity, rows, strict=True):
                seen = ~np.isin(columns, self._hidden[i]) if len(self._hidden[i]) else slice(None)
                made.append(Standing(row[seen], columns[seen], self._keep, self._bound))
            return made

        borders = [0, *(np.flatnonzero(np.diff(self._labels)) + 1).tolist(), len(self._labels)]
        labels = [range(a, b) for a, b in pairwise(borders)]
        return [standing for part in pool.map(of_label, labels) for standing in part]


def _parts(count: int) -> list[range]:
    return [range(i, min(i + _TOGETHER, count)) for i in range(0, count, _TOGETHER)]
