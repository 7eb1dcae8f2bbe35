"""The truth of a gallery: one SQLite file. An acknowledged change is on the disk, and readers see whole changes only.

Every change has a number, which its items carry, so that another process reads the difference alone.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from paddlex_feat.data.images.source import Box
from paddlex_feat.search.database import Database
from paddlex_feat.search.items import Item, NewItem, check_vector, texts_of
from paddlex_feat.search.problems import changed_meanwhile

_ROWS = 512  # read at once, so that they are in the processor's cache until they are copied
_CHANGING = ("items", "removed")  # tables whose rows have the number of a change
_ITEM = "items.id, key, label, path, box, data, state, added"


@dataclass(frozen=True)
class Difference:
    """What has changed since a change that is known.

    Attributes:
        change: number of the last change.
        ids: of the new and replaced items, int64 [N].
        vectors: of these, float32 [N, D].
        removed: ids that are gone.
    """

    change: int
    ids: np.ndarray
    vectors: np.ndarray
    removed: list[int] = field(default_factory=list)


class EpochChanged(Exception):
    """What a process knows of the gallery is not a part of it any more: ids were forgotten, or features exchanged."""


class Store(Database):
    """The items of an open gallery file. Used by one thread at a time."""

    def add(self, items: Iterable[NewItem]) -> list[int]:
        """Add items, or replace those of the same keys, all or none. Returns their ids."""
        rows = [(item, *texts_of(item, self.dimension)) for item in items]
        with self._change() as change:
            self._require_model()
            return [self._add(item, box, data, change) for item, box, data in rows]

    def remove(self, ids: Sequence[int]) -> int:
        """Remove the items of these ids, all or none. Returns how many there were."""
        with self._change() as change:
            count = 0
            for i in ids:
                count += self._db.execute("DELETE FROM items WHERE id = ?", (i,)).rowcount
                self._db.execute("DELETE FROM vectors WHERE id = ?", (i,))
                self._db.execute("DELETE FROM thumbnails WHERE id = ?", (i,))
                self._db.execute("INSERT OR REPLACE INTO removed VALUES (?, ?)", (i, change))
        return count

    def version(self) -> int:
        """Number of the last change of items."""
        with self._explained():
            parts = (self._db.execute(f"SELECT max(change) FROM {table}").fetchone()[0] for table in _CHANGING)  # noqa: S608
            return max((number for number in parts if number is not None), default=0)

    def fresh_since(self, version: int) -> int:
        """How many items were added or replaced after this change."""
        with self._explained():
            return self._fresh_since(version)

    def _fresh_since(self, version: int) -> int:
        return int(self._db.execute("SELECT count(*) FROM items WHERE change > ?", (version,)).fetchone()[0])

    def count(self) -> int:
        """Number of items."""
        with self._explained():
            return int(self._db.execute("SELECT count(*) FROM items").fetchone()[0])

    def labels(self) -> list[tuple[str | None, int]]:
        """Each label and how many items have it, in order of the labels."""
        with self._explained():
            return self._db.execute("SELECT label, count(*) FROM items GROUP BY label ORDER BY label").fetchall()

    def items(self, ids: Sequence[int]) -> list[Item]:
        """The items of these ids that exist, in their order."""
        found: dict[int, Item] = {}
        with self._explained():
            for first in range(0, len(ids), 500):
                part = [int(i) for i in ids[first : first + 500]]
                marks = ", ".join("?" * len(part))
                rows = self._db.execute(f"SELECT {_ITEM} FROM items WHERE id IN ({marks})", part)  # noqa: S608
                found |= {row[0]: self._item(row) for row in rows}
        return [found[i] for i in ids if i in found]

    def find(
        self,
        keys: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
        after: int = 0,
        limit: int = -1,
    ) -> Iterator[Item]:
        """The items that have one of the keys, and one of the labels, by id.

        Args:
            keys: None: any.
            labels: None: any; None among them: items without a label.
            after: only items of larger ids.
            limit: most items; -1: all.
        """
        conditions, values = ["id > ?"], list[object]([after])
        for column, wanted in (("key", keys), ("label", labels)):
            if wanted is not None:
                named = f"{column} IN (SELECT value FROM json_each(?))"  # noqa: S608
                conditions.append(f"({named} OR {column} IS NULL)" if None in wanted else named)
                values.append(json.dumps([value for value in wanted if value is not None]))
        query = f"SELECT {_ITEM} FROM items WHERE {' AND '.join(conditions)} ORDER BY id LIMIT ?"  # noqa: S608
        with self._explained():
            rows = self._db.execute(query, (*values, limit))
            while part := rows.fetchmany(_ROWS):
                yield from map(self._item, part)

    def states(self) -> dict[str, tuple[int, str | None, str | None]]:
        """Id, label and state by key, of all items."""
        with self._explained():
            rows = self._db.execute("SELECT key, id, label, state FROM items")
            return {key: (i, label, state) for key, i, label, state in rows}

    def thumbnail(self, i: int) -> bytes | None:
        """The JPEG of an item."""
        with self._explained():
            row = self._db.execute("SELECT jpeg FROM thumbnails WHERE id = ?", (i,)).fetchone()
        return row[0] if row and isinstance(row[0], bytes) else None

    def differences(self, known: int, epoch: int) -> Iterator[Difference]:
        """What has changed since the change `known` of an epoch, in pieces, all from one moment; 0 for everything.

        Ids that are removed come with the first piece. A piece may replace an item that is known. Raises EpochChanged
        before the first piece.
        """
        with self._explained(), self._reading():
            if self._meta_number("epoch") != epoch:
                raise EpochChanged
            last = self._last_change()
            gone = self._db.execute("SELECT id FROM removed WHERE change > ?", (known,)).fetchall() if known else []
            removed = [int(row[0]) for row in gone]
            if known:
                query = "SELECT v.id, v.vector FROM items JOIN vectors v ON v.id = items.id WHERE change > ?"
                rows = self._db.execute(f"{query} ORDER BY v.id", (known,))
            else:
                rows = self._db.execute("SELECT id, vector FROM vectors ORDER BY id")
            while True:
                part = rows.fetchmany(_ROWS)
                if not part and not removed and known != last:
                    yield Difference(last, np.empty(0, np.int64), np.empty((0, self.dimension), np.float32))
                if not part and not removed:
                    return
                ids = np.array([row[0] for row in part], np.int64)
                yield Difference(last, ids, self._unpacked([row[1] for row in part]), removed)
                removed, known = [], last

    def replace_vectors(self, model: dict[str, Any], ids: Sequence[int], vectors: np.ndarray, version: int) -> None:
        """Give all items features of another model, float32 [N, D], or none if there has been a change since `version`.

        Raises GalleryError in that case.
        """
        with self._change() as change:
            there = [row[0] for row in self._db.execute("SELECT id FROM items ORDER BY id")]
            if there != sorted(ids) or self._fresh_since(version):
                raise changed_meanwhile(str(self.path))
            self._set_meta("model", model)
            self._set_meta("epoch", self._meta_number("epoch") + 1)
            self._db.execute("DELETE FROM removed")
            self._db.execute("UPDATE items SET change = ?", (change,))
            for i, row in zip(ids, vectors, strict=True):
                check_vector(row, int(model["dimension"]), str(i))
                packed = np.ascontiguousarray(row, "<f4").tobytes()
                self._db.execute("UPDATE vectors SET vector = ? WHERE id = ?", (packed, int(i)))
        self.model, self.dimension = model, int(model["dimension"])

    def compact(self) -> None:
        """Give the space of what was removed back to the disk. Other processes read everything anew."""
        with self._change():
            self._db.execute("DELETE FROM removed")
            self._set_meta("epoch", self._meta_number("epoch") + 1)
        with self._explained():
            self._db.execute("VACUUM")
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    # How it is stored.

    def _add(self, item: NewItem, box: str | None, data: str | None, change: int) -> int:
        row = (item.label, item.path, box, data, item.state, time.time(), change, item.key)
        known = self._db.execute("SELECT id FROM items WHERE key = ?", (item.key,)).fetchone()
        if known:
            columns = "label = ?, path = ?, box = ?, data = ?, state = ?, added = ?, change = ?"
            self._db.execute(f"UPDATE items SET {columns} WHERE key = ?", row)  # noqa: S608
            i = known[0]
        else:
            columns = "label, path, box, data, state, added, change, key"
            query = f"INSERT INTO items ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"  # noqa: S608
            i = self._db.execute(query, row).lastrowid
        vector = np.ascontiguousarray(item.vector, "<f4").tobytes()
        self._db.execute("INSERT OR REPLACE INTO vectors VALUES (?, ?)", (i, vector))
        if item.thumbnail is None:
            self._db.execute("DELETE FROM thumbnails WHERE id = ?", (i,))
        else:
            self._db.execute("INSERT OR REPLACE INTO thumbnails VALUES (?, ?)", (i, item.thumbnail))
        return int(i)

    def _item(self, row: Sequence[Any]) -> Item:
        i, key, label, path, box, data, state, added = row
        texts = (label, path, state)
        if not isinstance(key, str) or not all(text is None or isinstance(text, str) for text in texts):
            raise self._foreign("an item of it has no texts")
        corners = None if box is None else self._decoded(box)
        if corners is not None:
            try:
                corners = Box(*map(float, corners))
            except (TypeError, ValueError):
                raise self._foreign("an item of it has no box") from None
        added = float(added) if isinstance(added, (int, float)) else 0.0
        return Item(int(i), key, label, path, corners, None if data is None else self._decoded(data), state, added)

    def _unpacked(self, blobs: list[Any]) -> np.ndarray:
        size = 4 * self.dimension
        if not {*map(type, blobs)} <= {bytes} or not {*map(len, blobs)} <= {size}:
            raise self._foreign(f"a vector of it does not have {self.dimension} numbers")
        rows = np.frombuffer(b"".join(blobs), "<f4").reshape(len(blobs), self.dimension)
        if not np.isfinite(rows).all():
            raise self._foreign("a vector of it is not finite")
        return rows.astype(np.float32, copy=False)
