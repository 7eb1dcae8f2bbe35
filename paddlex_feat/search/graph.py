"""Approximate search on request: a graph of neighbours (HNSW: Malkov and Yashunin, 2018, arXiv:1603.09320) by faiss.

It is faster than exact search in large galleries, and may miss neighbours: how many is measured on the gallery itself.
Similarities are computed exactly, in float64, for what it finds.

The graph is kept in a file beside the gallery. That file is untrusted: a number in its arrays that faiss would follow
out of its memory is refused.
"""

from __future__ import annotations

import importlib
import logging
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.fileio.npz import NpzWriter
from paddlex_feat.inference.engines.spec import require_package
from paddlex_feat.search.nearest import Nearest, best_of, exact_similarity

log = logging.getLogger(__name__)
SUFFIX = ".hnsw"  # after the name of the gallery
LINKS = 32  # of a node
_SPARE = 64  # nodes that are asked for beside twice the wanted ones, for some may have been removed
_CONSTRUCTION, _SEARCH = 80, 96  # nodes that are kept in mind while a node is added, while one is looked for
_MAX_STALE = 0.2  # once this share of the nodes was removed or replaced, the graph is made again
ASKED, RECALL_AT = 500, 10  # images whose neighbours are compared with the exact ones
_ROWS = 10_000  # added at once, between which Ctrl-C is heard
_ARRAYS = ("ids", "levels", "offsets", "neighbors", "entry")


class Mark(NamedTuple):
    """A moment of a gallery.

    Attributes:
        gallery: number of the gallery, which no other has.
        epoch: of its ids (`Database.epoch`).
        change: number of its last change.
    """

    gallery: int
    epoch: int
    change: int


class Graph:
    """A graph of the features of a `Nearest`, which it follows.

    Args:
        nearest: the features.

    Attributes:
        made: it was made of all features, since this was last set to False: not read, and not only followed.
    """

    def __init__(self, nearest: Nearest):
        require_package("faiss", "paddlex_feat[search]")
        self._faiss: Any = importlib.import_module("faiss")
        self._nearest = nearest
        self.made = True
        self._ids = np.empty(0, np.int64)  # of each node; -1 where the image was removed, or has other features by now
        self._node: dict[int, int] = {}  # of each id
        self._index = self._new_index()

    def __len__(self) -> int:
        return len(self._node)

    def update(self, removed: list[int], added: list[int]) -> None:
        """Follow changes: ids that are gone or have other features, and ids that are new or have."""
        for i in (*removed, *added):
            node = self._node.pop(i, None)
            if node is not None:
                self._ids[node] = -1
        if len(self._ids) - len(self._node) > _MAX_STALE * len(self._ids):
            self._index, self._ids, self._node, self.made = self._new_index(), np.empty(0, np.int64), {}, True
            added = [i for ids, _ in self._nearest.rows() for i in ids.tolist()]
        for first in range(0, len(added), _ROWS):
            part = np.array(added[first : first + _ROWS], np.int64)
            self._index.add(self._nearest.rows_of(part))
            self._node |= dict(zip(part.tolist(), range(len(self._ids), len(self._ids) + len(part)), strict=True))
            self._ids = np.concatenate([self._ids, part])

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `Nearest.search`, but for neighbours that are missed."""
        k = min(k, len(self))
        ids, similarity = np.empty((len(queries), k), np.int64), np.empty((len(queries), k))
        if not k:
            return ids, similarity
        wanted = min(len(self._ids), 2 * k + _SPARE)
        self._index.hnsw.efSearch = max(_SEARCH, 2 * wanted)
        _, nodes = self._index.search(np.ascontiguousarray(queries, np.float32), wanted)
        for number, query in enumerate(queries):
            found = self._ids[nodes[number][nodes[number] >= 0]]
            found = found[found >= 0]
            if len(found) < k:  # such as where most of what is near was removed
                ids[number], similarity[number] = (row[0] for row in self._nearest.search(query[None], k))
            else:
                scores = exact_similarity(self._nearest.rows_of(found), query)
                ids[number], similarity[number] = best_of(found, scores, k)
        return ids, similarity

    def recall(self, seed: int = 0) -> float:
        """Share of the RECALL_AT nearest images of ASKED images that are found; an image itself does not count."""
        known = np.array(sorted(self._node), np.int64)
        rng = np.random.default_rng(seed)
        asked = np.sort(rng.choice(known, min(ASKED, len(known)), replace=False))
        rows = self._nearest.rows_of(asked)
        exact, _ = self._nearest.search(rows, RECALL_AT + 1)
        found, _ = self.search(rows, RECALL_AT + 1)
        hits = total = 0
        for own, wanted, got in zip(asked.tolist(), exact.tolist(), found.tolist(), strict=True):
            near = set(wanted) - {own}
            hits, total = hits + len(near & set(got)), total + len(near)
        return hits / total if total else 1.0

    def save(self, path: Path, mark: Mark) -> None:
        """Write the graph, of the gallery at this moment. Raises OutputError."""
        hnsw, get = self._index.hnsw, self._faiss.vector_to_array
        arrays = {
            "ids": self._ids,
            "levels": get(hnsw.levels).astype(np.int32),
            "offsets": get(hnsw.offsets).astype(np.uint64),
            "neighbors": get(hnsw.neighbors).astype(np.int32),
            "entry": np.array([hnsw.entry_point, hnsw.max_level, *mark], np.int64),
        }
        with atomic_path(path) as temporary, NpzWriter(temporary) as writer:
            for name, array in arrays.items():
                writer.write(name, array.dtype, array.shape, [np.ascontiguousarray(array).tobytes()])

    def load(self, path: Path, now: Mark) -> int | None:
        """Take the graph of a file, if it is of this gallery and epoch and not later; returns its change, or None."""
        try:
            if not path.is_file():
                return None
            with zipfile.ZipFile(path) as archive:
                if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
                    raise ValueError("it expands")
            with np.load(path, allow_pickle=False) as content:
                ids, levels, offsets, neighbors, entry = (content[name] for name in _ARRAYS)
            self._require_sound(ids, levels, offsets, neighbors, entry)
            mark = Mark(*map(int, entry[2:]))
            if mark[:2] != now[:2] or mark.change > now.change:
                return None
        except Exception as error:  # noqa: BLE001 - NumPy raises nearly anything for damaged files
            log.warning("%s cannot be used, so the graph is made again: %s", path, error)
            return None
        index = self._new_index()
        there = np.array([i in self._nearest for i in ids.tolist()], bool)  # the others were removed since
        ids = np.where(there, ids, -1)
        rows = np.zeros((len(ids), self._nearest.dimension), np.float32)
        rows[there] = self._nearest.rows_of(ids[there])
        index.storage.add(rows)
        index.ntotal = len(ids)
        for array, vector in ((levels, index.hnsw.levels), (offsets, index.hnsw.offsets)):
            self._faiss.copy_array_to_vector(np.ascontiguousarray(array), vector)
        self._faiss.copy_array_to_vector(np.ascontiguousarray(neighbors), index.hnsw.neighbors)
        index.hnsw.entry_point, index.hnsw.max_level = int(entry[0]), int(entry[1])
        self._index, self._ids = index, ids
        self._node = {i: node for node, i in enumerate(ids.tolist()) if i >= 0}
        return mark.change

    def _require_sound(self, ids: Any, levels: Any, offsets: Any, neighbors: Any, entry: Any) -> None:
        """Raise ValueError for arrays that are not a graph."""
        types = ((ids, np.int64), (levels, np.int32), (offsets, np.uint64), (neighbors, np.int32), (entry, np.int64))
        if any(array.dtype != kind or array.ndim != 1 for array, kind in types):
            raise ValueError("its arrays are of other types")
        count = len(ids)
        index = self._new_index()  # whose array is read: it must live until then
        upto = self._faiss.vector_to_array(index.hnsw.cum_nneighbor_per_level).astype(np.int64)
        sound = len(levels) == count and len(offsets) == count + 1 and len(entry) == 5 and bool(count)
        sound = sound and len(np.unique(ids[ids >= 0])) == np.count_nonzero(ids >= 0)
        sound = sound and bool(((levels >= 1) & (levels < len(upto))).all()) and int(offsets[0]) == 0
        sound = sound and bool((np.diff(offsets.astype(np.int64)) == upto[levels]).all())
        sound = sound and int(offsets[-1]) == len(neighbors)
        sound = sound and bool(((neighbors >= -1) & (neighbors < count)).all())
        sound = sound and 0 <= int(entry[0]) < count and int(entry[1]) == int(levels[int(entry[0])]) - 1
        if not sound or not self._levels_hold(levels, offsets.astype(np.int64), neighbors, upto):
            raise ValueError("its graph is damaged")

    def _levels_hold(self, levels: np.ndarray, offsets: np.ndarray, neighbors: np.ndarray, upto: np.ndarray) -> bool:
        """Whether no link of a level leads to a node that is not on it: faiss would read another node's links."""
        for node in np.flatnonzero(levels > 1).tolist():
            for level in range(1, int(levels[node])):
                links = neighbors[offsets[node] + upto[level] : offsets[node] + upto[level + 1]]
                if (levels[links[links >= 0]] <= level).any():
                    return False
        return True

    def _new_index(self) -> Any:
        index = self._faiss.IndexHNSWFlat(self._nearest.dimension, LINKS, self._faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = _CONSTRUCTION
        return index
