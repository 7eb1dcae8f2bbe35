"""A gallery on this machine: a SQLite file, whose features are in memory from the first question on."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.errors import as_output_error
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.runtime.collector import without_collector
from paddlex_feat.search.backend import Rows
from paddlex_feat.search.graph import RECALL_AT, SUFFIX, Graph, Mark
from paddlex_feat.search.items import Item, NewItem
from paddlex_feat.search.nearest import Nearest
from paddlex_feat.search.problems import identity_in, rebuilt
from paddlex_feat.search.store import EpochChanged, Store

log = logging.getLogger(__name__)
RECALL, ID = "hnsw", "id"  # in the gallery's meta


class LocalBackend:
    """`Backend` of a file. Other processes' changes are seen at once.

    Args:
        path: of the file, which exists.
        approximate: search by a graph (`Graph`), which is kept in a file beside the gallery.
    """

    def __init__(self, path: Path, approximate: bool = False):
        self.where = str(path)
        self._approximate = approximate
        self._lock = threading.RLock()
        self._store = Store(path)
        try:
            self.identity = self._stored_identity()
            self._epoch = self._store.epoch()
        except BaseException:
            self._store.close()
            raise
        self._nearest: Nearest | None = None
        self._known = 0  # the change that `_nearest` is of
        self._graph: Graph | None = None

    @classmethod
    def create(cls, path: Path, identity: ModelIdentity) -> LocalBackend:
        """Make an empty gallery, or open the one that is there."""
        with as_output_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        Store(path, {"model": identity.as_json(), ID: secrets.token_hex(7)}).close()
        return cls(path)

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._store.close()

    def version(self) -> int:
        """Number of the last change of images."""
        with self._lock:
            return self._store.version()

    def fresh_since(self, version: int) -> int:
        """How many images were added or replaced since."""
        with self._lock:
            return self._store.fresh_since(version)

    def meta(self) -> dict[str, Any]:
        """What the gallery says about itself."""
        with self._lock:
            return self._store.meta()

    def set_meta(self, name: str, value: Any) -> None:
        """Say something about the gallery."""
        with self._lock:
            self._store.set_meta(name, value)

    def count(self) -> int:
        """Number of images."""
        with self._lock:
            if self._nearest is not None:
                return len(self._current())
            self._require_epoch()
            return self._store.count()

    def add(self, items: Sequence[NewItem]) -> list[int]:
        """Add images, all or none."""
        with self._lock:
            return self._store.add(items)

    def remove(self, ids: Sequence[int]) -> int:
        """Remove images, all or none."""
        with self._lock:
            return self._store.remove(ids)

    def find(
        self, keys: Sequence[str] | None, labels: Sequence[str | None] | None, after: int = 0, limit: int = -1
    ) -> list[Item]:
        """Images by keys and labels."""
        with self._lock:
            return list(self._store.find(keys, labels, after, limit))

    def labels(self) -> list[tuple[str | None, int]]:
        """Each label, and how many images have it."""
        with self._lock:
            return self._store.labels()

    def states(self) -> dict[str, tuple[int, str | None, str | None]]:
        """Id, label and state by key."""
        with self._lock:
            return self._store.states()

    def thumbnail(self, i: int) -> bytes | None:
        """The small JPEG of an image."""
        with self._lock:
            return self._store.thumbnail(i)

    def nearest(self, features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, dict[int, Item]]:
        """The nearest, exactly unless it is approximate; of equal ones the smaller id first."""
        with self._lock:
            found = self._current_graph() if self._approximate else self._current()
            ids, scores = found.search(features, k)
            return ids, scores, {item.id: item for item in self._store.items(np.unique(ids).tolist())}

    def method(self) -> dict[str, Any]:
        """How it searches; of a graph, how many of the nearest it finds."""
        if not self._approximate:
            return {"method": "exact"}
        with self._lock:
            self._current_graph()
            return {"method": "hnsw", **self._store.meta().get(RECALL, {})}

    def rows(self) -> Rows:
        """All features."""
        with self._lock:
            return list(self._current().rows())

    def rebuild(self, model: ModelIdentity, ids: Sequence[int], vectors: np.ndarray, version: int) -> None:
        """Give all images features of another model, all or none."""
        with self._lock:
            self._store.replace_vectors(model.as_json(), ids, vectors, version)
            self.identity = model

    def compact(self) -> None:
        """Give the space of removed images back to the disk."""
        with self._lock:
            self._store.compact()

    def _current(self) -> Nearest:
        """The features as they are now: with what other processes, and this one, have changed."""
        while self._nearest is None or self._store.changed(self._known):
            if self._require_epoch() or self._nearest is None:
                self._nearest, self._known, self._graph = Nearest(self.identity.dimension), 0, None
            try:
                self._known = self._follow(self._nearest)
            except EpochChanged:
                pass  # between the two looks at the file
            except BaseException:
                self._nearest = None  # it may have a part of a change
                raise
        return self._nearest

    def _follow(self, nearest: Nearest) -> int:
        """Take over what has changed since the change that is known; returns the last change."""
        last = self._known
        with without_collector():
            for difference in self._store.differences(self._known, self._epoch):
                nearest.remove(difference.removed)
                nearest.add(difference.ids, difference.vectors)
                last = difference.change
                if self._graph is not None:
                    self._graph.update(difference.removed, difference.ids.tolist())
        return last

    def _current_graph(self) -> Graph:
        """The graph of the features as they are now. Once it was made, its recall is measured, and it is written."""
        graph = None
        while graph is None or graph is not self._graph:  # else others have exchanged the features meanwhile
            nearest = self._current()
            graph = self._graph or self._read_or_make_graph(nearest)
            self._graph = graph
            if graph.made:
                recall = graph.recall()
                log.info("The graph finds %.2f %% of the %d nearest images", 100 * recall, RECALL_AT)
                self._store.set_meta(RECALL, {f"recall_at_{RECALL_AT}": recall, "images": len(graph)})
                self._current()
                if graph is self._graph:
                    graph.save(self._graph_file, self._mark())
                    graph.made = False
        return graph

    @property
    def _graph_file(self) -> Path:
        return Path(f"{self.where}{SUFFIX}")

    def _mark(self) -> Mark:
        """The moment of the gallery that the features in memory are of."""
        return Mark(int(self._store.meta().get(ID) or "0", 16), self._epoch, self._known)

    def _read_or_make_graph(self, nearest: Nearest) -> Graph:
        """The graph of the file, if it can follow to these features, else one of all features."""
        graph, mark = Graph(nearest), self._mark()
        change = graph.load(self._graph_file, mark)
        if change is not None:
            graph.made = False
            try:
                for difference in self._store.differences(change, self._epoch):
                    if difference.change != self._known:
                        raise EpochChanged  # it has items that are not in memory yet
                    graph.update(difference.removed, difference.ids.tolist())
                if len(graph) == len(nearest):
                    return graph
            except EpochChanged:
                pass
            graph = Graph(nearest)
        log.info("The graph of %d images is made, which takes minutes for hundreds of thousands", len(nearest))
        graph.update([], [i for ids, _ in nearest.rows() for i in ids.tolist()])
        return graph

    def _require_epoch(self) -> bool:
        """Whether differences are not enough any more. Raises GalleryError if the features are of another model."""
        epoch = self._store.epoch()
        if epoch == self._epoch:
            return False
        if self._stored_identity() != self.identity:
            raise rebuilt(self.where)
        self._epoch = epoch
        return True

    def _stored_identity(self) -> ModelIdentity:
        return identity_in(self._store.meta().get("model"), self.where)
