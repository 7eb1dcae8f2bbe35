"""The nearest of many features, exactly: by cosine similarity in float64, the smaller id first where it is equal.

Features are kept in blocks, so that one is added or removed without a copy of the others. A full block also has an
8-bit form, if faiss is installed. One query scans these, a quarter of the memory; how much a similarity can differ from
the exact one is known for each block, so all features that may be among the nearest are scored again in float64.
Several queries at once are a matrix product in float32, whose rounding has a bound too.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
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
    """

    ids: np.ndarray
    rows: np.ndarray
    count: int = 0
    scan: Any = None
    error: float = 0.0


@dataclass
class Nearest:
    """Features of unit length by id, to be searched. Not for several threads that change it.

    Attributes:
        dimension: D.
        quick: make the 8-bit form of full blocks, if faiss is installed.
    """

    dimension: int
    quick: bool = True
    _blocks: list[_Block] = field(default_factory=list)
    _place: dict[int, _Block] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._faiss = _faiss() if self.quick else None
        self._pool = ThreadPoolExecutor(cpu_count(), "search")

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, i: int) -> bool:
        return i in self._place

    def add(self, ids: np.ndarray, rows: np.ndarray) -> None:
        """Add features, float32 [N, D], under their ids, int64 [N], which replace those of the same ids."""
        self.remove([i for i in ids.tolist() if i in self._place])
        first = 0
        while first < len(ids):
            block = self._open_block()
            taken = min(BLOCK - block.count, len(ids) - first)
            to = slice(block.count, block.count + taken)
            block.ids[to], block.rows[to] = ids[first : first + taken], rows[first : first + taken]
            block.count += taken
            self._place.update(dict.fromkeys(ids[first : first + taken].tolist(), block))
            first += taken
            if block.count == BLOCK:
                self._quantize(block)

    def remove(self, ids: list[int]) -> None:
        """Remove the features of these ids; others than those that are there do nothing."""
        for i in ids:
            block = self._place.pop(i, None)
            if block is None:
                continue
            at = int(np.flatnonzero(block.ids[: block.count] == i)[0])
            for array in (block.ids, block.rows):
                array[at : block.count - 1] = array[at + 1 : block.count]
            block.count -= 1
            if block.scan is not None:
                block.scan.remove_ids(np.array([at], np.int64))
            if block.count < BLOCK // 4 and block is not self._blocks[-1]:  # a block takes its memory in any case
                self._blocks.remove(block)
                rest = slice(0, block.count)
                for left in block.ids[rest].tolist():
                    del self._place[left]
                self.add(block.ids[rest], block.rows[rest])

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
        if len(queries) < MANY and any(block.scan is not None for block in self._blocks):
            for number, query in enumerate(queries):
                ids[number], similarity[number] = self._scan(query, k)
            return ids, similarity
        for first in range(0, len(queries), _QUERIES):
            part = slice(first, first + _QUERIES)
            ids[part], similarity[part] = self._multiply(queries[part], k)
        return ids, similarity

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All ids and features, a block at a time: int64 [N], float32 [N, D]; not to be changed."""
        for block in self._blocks:
            yield block.ids[: block.count], block.rows[: block.count]

    def rows_of(self, ids: np.ndarray) -> np.ndarray:
        """The features of these ids, float32 [N, D]."""
        rows = np.empty((len(ids), self.dimension), np.float32)
        for number, i in enumerate(ids.tolist()):
            block = self._place[i]
            rows[number] = block.rows[int(np.flatnonzero(block.ids[: block.count] == i)[0])]
        return rows

    def _open_block(self) -> _Block:
        """The last block, or a new one if it is full or was: the 8-bit form of a block never grows."""
        last = self._blocks[-1] if self._blocks else None
        if last is not None and last.count < BLOCK and last.scan is None:
            return last
        block = _Block(np.empty(BLOCK, np.int64), np.empty((BLOCK, self.dimension), np.float32))
        self._blocks.append(block)
        return block

    def _quantize(self, block: _Block) -> None:
        """Make the 8-bit form of a full block, and measure how far features are from it."""
        if self._faiss is None:
            return
        scan = self._faiss.IndexScalarQuantizer(
            self.dimension, self._faiss.ScalarQuantizer.QT_8bit, self._faiss.METRIC_INNER_PRODUCT
        )
        scan.train(block.rows)
        scan.add(block.rows)
        square = 0.0
        for first in range(0, BLOCK, 1024):
            rows = block.rows[first : first + 1024]
            difference = rows.astype(np.float64) - scan.sa_decode(scan.sa_encode(rows))
            square = max(square, float(np.einsum("nd,nd->n", difference, difference).max()))
        block.scan, block.error = scan, square**0.5

    def _rounding(self) -> float:
        """Bound of the rounding of a similarity in float32, of vectors that are hardly longer than 1."""
        return 1.1 * self.dimension * _ROUNDING

    def _scan(self, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of one query, float32 [D], by the 8-bit forms."""
        found = list(self._pool.map(lambda block: self._candidates(block, query, k + _FIRST), self._blocks))
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
        if block.scan is None:
            return _Near(block, np.arange(block.count), block.rows[: block.count] @ query, error, True)
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
        margin = 2 * self._rounding()
        kept_ids, kept = np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)
        spare = k + _FIRST
        for block in self._blocks:
            similar = queries @ block.rows[: block.count].T
            places = largest(similar, min(spare, block.count))
            kept_ids = np.concatenate([kept_ids, block.ids[places]], axis=1)
            kept = np.concatenate([kept, np.take_along_axis(similar, places, axis=1)], axis=1)
            if kept.shape[1] > spare:
                best = largest(kept, spare)
                kept_ids, kept = np.take_along_axis(kept_ids, best, axis=1), np.take_along_axis(kept, best, axis=1)
        ids, similarity = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        for number, query in enumerate(queries):
            order = np.sort(kept[number])[::-1]
            if order[-1] >= order[k - 1] - margin and kept.shape[1] < len(self):  # more may be as near: many copies
                ids[number], similarity[number] = self._all(query, float(order[k - 1]) - margin, k)
                continue
            chosen = kept_ids[number][kept[number] >= order[k - 1] - margin]
            ids[number], similarity[number] = best_of(chosen, exact_similarity(self.rows_of(chosen), query), k)
        return ids, similarity

    def _all(self, query: np.ndarray, least: float, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of all features that are at least so similar in float32."""
        parts = []
        for block in self._blocks:
            near = block.rows[: block.count] @ query >= least
            parts.append((block.ids[: block.count][near], block.rows[: block.count][near]))
        ids, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
        return best_of(ids, exact_similarity(rows, query), k)


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
