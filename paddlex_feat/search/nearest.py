"""The nearest of many features, exactly: by cosine similarity in float64, the smaller id first where it is equal.

Features are kept in blocks, so that one is added or removed without a copy of the others. A full block also has an
8-bit form, if faiss is installed. One query scans these, a quarter of the memory; how much a similarity can differ from
the exact one is known for each block, so all features that may be among the nearest are scored again in float64.
Several queries at once are a matrix product in float32, whose rounding has a bound too.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np

from paddlex_feat.evaluation.ranking.largest import largest
from paddlex_feat.runtime.cpu import cpu_count

BLOCK = 16384  # features of a block
MANY = 8  # queries from which on a matrix product is faster than scans of the 8-bit form
_QUERIES = 256  # of a matrix product
_FIRST = 32  # more candidates than asked for that a block gives at first
_WIDER = 8  # times as many, where these do not suffice
_ROUNDING = 2.0**-23  # of a sum of D products of float32, times D: twice the usual bound, for any order of summation


@dataclass(eq=False)
class _Block:
    """Features, the first `count` of them in use, in the order of adding.

    Attributes:
        ids: int64 [BLOCK].
        rows: float32 [BLOCK, D].
        count: number of features.
        scan: faiss's index of the 8-bit form; None: there is none.
        error: how far a feature is from its 8-bit form at most.
        making: of the 8-bit form, in another thread; the features do not change until it is done.
        shown: whether `Nearest.rows` has given its arrays away.
    """

    ids: np.ndarray
    rows: np.ndarray
    count: int = 0
    scan: Any = None
    error: float = 0.0
    making: Future[None] | None = None
    shown: bool = False


@dataclass
class Nearest:
    """Features of unit length by id, to be searched. Not for several threads that change it.

    Attributes:
        dimension: D.
        quick: make the 8-bit form of full blocks, if faiss is installed.
    """

    dimension: int
    quick: bool = True
    _blocks: dict[int, _Block] = field(default_factory=dict)  # by number, in order
    _place: dict[int, int] = field(default_factory=dict)  # number of the block of each id: Python's collector skips it
    _last: int = -1  # number of the last block

    def __post_init__(self) -> None:
        self._faiss = _faiss() if self.quick else None
        self._pool = ThreadPoolExecutor(cpu_count(), "search")

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, i: int) -> bool:
        return i in self._place

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Add features, float32 [N, D], under their ids, int64 [N], which replace those of the same ids."""
        if self._place:
            self.remove([i for i in ids.tolist() if i in self._place])
        first = 0
        while first < len(ids):
            number, block = self._open_block()
            taken = min(BLOCK - block.count, len(ids) - first)
            to = slice(block.count, block.count + taken)
            block.ids[to], block.rows[to] = ids[first : first + taken], rows[first : first + taken]
            block.count += taken
            self._place.update(dict.fromkeys(ids[first : first + taken].tolist(), number))
            first += taken
            if block.count == BLOCK and self._faiss is not None:
                block.making = self._pool.submit(self._quantize, block)

    def remove(self, ids: list[int]) -> None:
        """Remove the features of these ids; others than those that are there do nothing."""
        gone: dict[int, list[int]] = {}
        for i in ids:
            number = self._place.pop(i, None)
            if number is not None:
                gone.setdefault(number, []).append(i)
        for number, of_block in gone.items():
            self._shrink(number, np.array(of_block, np.int64))

    def _shrink(self, number: int, gone: np.ndarray) -> None:
        """Take features out of a block; one that is nearly empty is dissolved, for it takes its memory in any case."""
        block = self._blocks[number]
        self._settle(block)
        kept = ~np.isin(block.ids[: block.count], gone)
        ids, rows = block.ids[: block.count][kept], block.rows[: block.count][kept]
        if block.scan is not None:
            block.scan.remove_ids(np.flatnonzero(~kept))
        if block.shown:  # who has been given its arrays keeps them as they are
            block.ids, block.rows, block.shown = np.empty_like(block.ids), np.empty_like(block.rows), False
        block.count = len(ids)
        if block.count < BLOCK // 4 and number != self._last:
            del self._blocks[number]
            for left in ids.tolist():
                del self._place[left]
            self.add(ids, rows)
        else:
            block.ids[: block.count], block.rows[: block.count] = ids, rows

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of each query, or all features if they are fewer.

        Args:
            queries: of unit length, float32 [Q, D].
            k: at least 1.

        Returns ids, int64 [Q, K], and similarities, float64 [Q, K], the nearest first.
        """
        k = min(k, len(self))
        ids, similarity = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        if not k:
            return ids, similarity
        for block in self._blocks.values():
            self._settle(block)
        if len(queries) < MANY and any(block.scan is not None for block in self._blocks.values()):
            for number, query in enumerate(queries):
                ids[number], similarity[number] = self._scan(query, k)
            return ids, similarity
        for first in range(0, len(queries), _QUERIES):
            part = slice(first, first + _QUERIES)
            ids[part], similarity[part] = self._multiply(queries[part], k)
        return ids, similarity

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All ids and features, a block at a time: int64 [N], float32 [N, D]; not to be changed.

        They stay as they are whatever is added and removed later.
        """
        for block in self._blocks.values():
            block.shown = True
            yield block.ids[: block.count], block.rows[: block.count]

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """The features of these ids, float32 [N, D]."""
        rows = np.empty((len(ids), self.dimension), np.float32)
        for number, i in enumerate(ids.tolist()):
            block = self._blocks[self._place[i]]
            rows[number] = block.rows[int(np.flatnonzero(block.ids[: block.count] == i)[0])]
        return rows

    def _open_block(self) -> tuple[int, _Block]:
        """The last block and its number; a new one if it is full or was: the 8-bit form of a block never grows."""
        last = self._blocks.get(self._last)
        if last is not None and last.count < BLOCK and last.scan is None and last.making is None:
            return self._last, last
        self._last += 1
        block = _Block(np.empty(BLOCK, np.int64), np.empty((BLOCK, self.dimension), np.float32))
        self._blocks[self._last] = block
        return self._last, block

    def _settle(self, block: _Block) -> None:
        """Wait for the 8-bit form that is being made."""
        if block.making is not None:
            block.making.result()
            block.making = None

    def _quantize(self, block: _Block) -> None:
        """Make the 8-bit form of a full block, and measure how far features are from it."""
        assert self._faiss is not None
        scan = self._faiss.IndexScalarQuantizer(
            self.dimension, self._faiss.ScalarQuantizer.QT_8bit, self._faiss.METRIC_INNER_PRODUCT
        )
        scan.train(block.rows)
        scan.add(block.rows)
        square = 0.0
        for first in range(0, BLOCK, 1024):
            difference = block.rows[first : first + 1024] - scan.reconstruct_n(first, min(1024, BLOCK - first))
            square = max(square, float(np.einsum("nd,nd->n", difference, difference).max()))
        block.scan, block.error = scan, 1.001 * square**0.5  # for the rounding of the line above

    def _rounding(self) -> float:
        """Bound of the rounding of a similarity in float32, of vectors that are hardly longer than 1."""
        return 1.1 * self.dimension * _ROUNDING

    def _scan(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of one query, float32 [D], by the 8-bit forms."""
        found = list(self._pool.map(lambda block: self._candidates(block, query, k + _FIRST), self._blocks.values()))
        # As many features are certainly this near; what cannot be is not looked at again.
        sure = np.concatenate([near.similarity - near.error for near in found])
        least = np.partition(sure, len(sure) - k)[len(sure) - k]
        found = list(self._pool.map(lambda near: self._widened(near, query, least), found))
        places = [near.places[near.similarity + near.error >= least] for near in found]
        ids = np.concatenate([near.block.ids[there] for near, there in zip(found, places, strict=True)])
        rows = np.concatenate([near.block.rows[there] for near, there in zip(found, places, strict=True)])
        return best_of(ids, exact_similarity(rows, query), k)

    def _candidates(self, block: _Block, query: np.ndarray, k: int) -> _Near:
        """The k nearest features of a block by its 8-bit form; all of one without it."""
        error = block.error + self._rounding()
        if block.scan is None:  # not @: the threads of BLAS go on turning for a while, beside the other blocks' scans
            similarity = np.einsum("nd,d->n", block.rows[: block.count], query)
            return _Near(block, np.arange(block.count), similarity, error, True)
        k = min(k, block.count)
        similarity, places = block.scan.search(query[None], k)
        return _Near(block, places[0], similarity[0], error, k == block.count)

    def _widened(self, near: _Near, query: np.ndarray, least: float) -> _Near:
        """More candidates of a block, until those that are left out cannot be among the nearest."""
        while not near.complete and near.similarity[-1] + near.error >= least:
            near = self._candidates(near.block, query, _WIDER * len(near.places))
        return near

    def _multiply(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of each query, float32 [Q, D], by matrix products in float32."""
        margin, spare = 2 * self._rounding(), k + _FIRST
        found = _Largest.of(len(queries), spare)
        buffer = np.empty((BLOCK, len(queries)), np.float32)
        for block in self._blocks.values():
            similar = np.matmul(block.rows[: block.count], queries.T, out=buffer[: block.count])
            found = found.with_block(similar, block.ids)
        ids, similarity = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        for number, query in enumerate(queries):
            values, least = found.values[number], found.values[number, k - 1] - margin
            if values[-1] >= least and spare < len(self):  # more may be as near: many copies
                ids[number], similarity[number] = self._all(query, float(least), k)
                continue
            chosen = found.ids[number][values >= least]
            ids[number], similarity[number] = best_of(chosen, exact_similarity(self.rows_of(chosen), query), k)
        return ids, similarity

    def _all(self, query: np.ndarray, least: float, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of all features that are at least so similar in float32."""
        parts = []
        for block in self._blocks.values():
            near = block.rows[: block.count] @ query >= least
            parts.append((block.ids[: block.count][near], block.rows[: block.count][near]))
        ids, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
        return best_of(ids, exact_similarity(rows, query), k)


@dataclass(frozen=True)
class _Largest:
    """The largest similarities of each query so far, largest first.

    Attributes:
        values: float32 [Q, K]; -inf where there are fewer.
        ids: int64 [Q, K].
    """

    values: np.ndarray
    ids: np.ndarray

    @classmethod
    def of(cls, queries: int, k: int) -> _Largest:
        """None so far."""
        return cls(np.full((queries, k), -np.inf, np.float32), np.zeros((queries, k), np.int64))

    def with_block(self, similar: np.ndarray, ids: np.ndarray) -> _Largest:
        """With those of more features: similarities, float32 [N, Q], and their ids, int64 [N or more]."""
        queries, k = self.values.shape
        if self.values[0, -1] == -np.inf:  # so few so far that any of the others may be among the largest
            places = largest(np.ascontiguousarray(similar.T), min(k, len(similar)))
            asking, rows = np.repeat(np.arange(queries), places.shape[1]), places.ravel()
        else:
            rows, asking = np.divmod(np.flatnonzero(similar > self.values[:, -1]), queries)
        asked = np.concatenate([np.repeat(np.arange(queries), k), asking])
        values = np.concatenate([self.values.ravel(), similar[rows, asking]])
        all_ids = np.concatenate([self.ids.ravel(), ids[rows]])
        order = np.lexsort((-values, asked))
        starts = np.searchsorted(asked[order], np.arange(queries))
        kept = order[starts[:, None] + np.arange(k)]
        return _Largest(values[kept], all_ids[kept])


@dataclass(frozen=True)
class _Near:
    """Candidates of a block.

    Attributes:
        block: of which they are.
        places: of the features in it.
        similarity: by its 8-bit form, largest first unless `complete`.
        error: by which these can differ from the exact ones.
        complete: whether they are all features of the block.
    """

    block: _Block
    places: np.ndarray
    similarity: np.ndarray
    error: float
    complete: bool


def exact_similarity(rows: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Similarities in float64, float64 [N]; equal rows get equal ones, which a matrix product does not promise."""
    similarity: np.ndarray = np.einsum("nd,d->n", rows.astype(np.float64), query.astype(np.float64))
    return similarity


def best_of(ids: np.ndarray, similarity: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k ids of the largest similarities, and these, largest first, the smaller id first where they are equal."""
    order = np.lexsort((ids, -similarity))[:k]
    return ids[order], similarity[order]


def _faiss() -> ModuleType | None:
    """The module faiss; None if it is not installed."""
    try:
        return importlib.import_module("faiss")
    except ImportError:
        return None
