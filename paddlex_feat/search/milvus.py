"""A gallery on a Milvus server, for more images than one machine holds; by pymilvus (extra `milvus`).

A small collection beside the images' has what the gallery says about itself: the model, which collection holds its
images, and a number that every change gives another value. Rebuilding fills a new collection, and then exchanges the
name: whole, or not at all. Milvus has no transactions: of an addition that fails in the middle, some images may be
there, which the same addition replaces; and only one process should add images of the same keys at a time.
"""

from __future__ import annotations

import base64
import importlib
import json
import logging
import secrets
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from paddlex_feat.errors import GalleryError
from paddlex_feat.fileio.addresses import without_password
from paddlex_feat.inference.engines.spec import require_package
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.backend import Rows
from paddlex_feat.search.items import Item, NewItem
from paddlex_feat.search.milvus_rows import (
    AT_ONCE,
    create_images,
    create_meta,
    in_parts,
    item_of,
    meta_collection,
    new_ids,
    row_of,
    with_vector,
    write_meta,
)
from paddlex_feat.search.nearest import best_of, exact_similarity
from paddlex_feat.search.problems import changed_meanwhile, identity_in, missing, rebuilt

STATE = "state"  # the row of the small collection that names model, collection and change
_FIELDS = ("id", "key", "label", "path", "box", "data", "state", "added")
_SPARE = 32  # candidates beyond the wanted ones, whose similarities are computed again in float64
_MOST = 16384  # rows that Milvus answers at most
_SECONDS = 60


class MilvusBackend:
    """`Backend` of a collection.

    Args:
        url: of the server, such as http://localhost:19530.
        collection: name of the gallery.
        token: of the server; None: none.
    """

    def __init__(self, url: str, collection: str, token: str | None = None):
        self._milvus = _pymilvus()
        self.where = f"{without_password(url)}/{collection}"
        self._name, self._lock = collection, threading.RLock()
        with self._explained():
            self._client = _connected(self._milvus, url, token)
        try:
            state = self._state()
            self.identity = identity_in(state["model"], self.where)
            self._collection = str(state["collection"])
        except BaseException:
            self._client.close()
            raise

    @classmethod
    def create(cls, url: str, collection: str, identity: ModelIdentity, token: str | None = None) -> MilvusBackend:
        """Make an empty gallery, or open the one that is there."""
        milvus = _pymilvus()
        with _explained_at(f"{without_password(url)}/{collection}", milvus):
            client = _connected(milvus, url, token)
            try:
                if not client.has_collection(meta_collection(collection)):
                    name = f"{collection}_{secrets.token_hex(4)}"
                    create_images(client, milvus, name, identity.dimension)
                    create_meta(client, milvus, meta_collection(collection))
                    state = {"model": identity.as_json(), "collection": name, "change": 0}
                    write_meta(client, collection, STATE, state)
            finally:
                client.close()
        return cls(url, collection, token)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def version(self) -> int:
        """A number that every change gives another value."""
        return int(self._state()["change"])

    def fresh_since(self, version: int) -> int:
        """All images if there has been a change since; the server does not say of which."""
        return 0 if self.version() == version else self.count()

    def meta(self) -> dict[str, Any]:
        """What the gallery says about itself."""
        with self._explained():
            rows = self._client.query(meta_collection(self._name), filter='name != ""', output_fields=["name", "value"])
        content = {str(row["name"]): json.loads(row["value"]) for row in rows}
        state = content.pop(STATE, {})
        return {**content, "model": state.get("model")}

    def set_meta(self, name: str, value: Any) -> None:
        """Say something about the gallery."""
        with self._explained():
            write_meta(self._client, self._name, name, value)

    def count(self) -> int:
        """Number of images."""
        self._require_current()
        with self._explained():
            rows = self._client.query(self._collection, filter="", output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def add(self, items: Sequence[NewItem]) -> list[int]:
        """Add images. Those of one request, AT_ONCE, are there together."""
        rows = [row_of(item, self.identity.dimension) for item in items]
        with self._lock:
            self._require_current()
            known = {item.key: item.id for item in self.find([item.key for item in items], None)}
            ids = [known.setdefault(item.key, fresh) for item, fresh in zip(items, new_ids(len(items)), strict=True)]
            last = {item.key: {"id": i, **row} for item, i, row in zip(items, ids, rows, strict=True)}
            unique = list(last.values())  # of a key that is given twice, the last one
            with self._explained():
                for first in range(0, len(unique), AT_ONCE):
                    self._client.upsert(self._collection, unique[first : first + AT_ONCE])
            self._changed()
        return ids

    def remove(self, ids: Sequence[int]) -> int:
        """Remove images."""
        wanted = [int(i) for i in ids]
        count = 0
        with self._lock, self._explained():
            self._require_current()
            for first in range(0, len(wanted), AT_ONCE):
                part = wanted[first : first + AT_ONCE]
                there = self._client.get(self._collection, ids=part, output_fields=["id"])
                count += len(there)
                if there:
                    self._client.delete(self._collection, ids=[row["id"] for row in there])
            if count:
                self._changed()
        return count

    def find(
        self, keys: Sequence[str] | None, labels: Sequence[str | None] | None, after: int = 0, limit: int = -1
    ) -> list[Item]:
        """Images by keys and labels."""
        found: list[Item] = []
        for part in in_parts(keys):
            conditions = [f"id > {int(after)}"]
            for name, wanted in (("key", part), ("label", labels)):
                if wanted is not None:
                    conditions.append(f"{name} in {json.dumps([text or '' for text in wanted], ensure_ascii=False)}")
            most = -1 if limit < 0 else limit - len(found)
            found += map(item_of, self._query(" and ".join(conditions), _FIELDS, most))
        return sorted(found, key=lambda item: item.id)[: None if limit < 0 else limit]

    def labels(self) -> list[tuple[str | None, int]]:
        """Each label, and how many images have it."""
        counts = Counter(row["label"] for row in self._query("id > 0", ("label",)))
        return [(label or None, count) for label, count in sorted(counts.items())]

    def states(self) -> dict[str, tuple[int, str | None, str | None]]:
        """Id, label and state by key."""
        rows = self._query("id > 0", ("id", "key", "label", "state"))
        return {row["key"]: (int(row["id"]), row["label"] or None, row["state"] or None) for row in rows}

    def thumbnail(self, i: int) -> bytes | None:
        """The small JPEG of an image."""
        with self._explained():
            rows = self._client.get(self._collection, ids=[int(i)], output_fields=["thumbnail"])
        return base64.b64decode(rows[0]["thumbnail"]) if rows and rows[0]["thumbnail"] else None

    def nearest(self, features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, dict[int, Item]]:
        """The nearest by Milvus's FLAT index, which compares with every image; scored again in float64."""
        self._require_current()
        with self._explained():
            answers = self._client.search(
                self._collection,
                data=[row.tolist() for row in features],
                anns_field="vector",
                limit=min(k + _SPARE, _MOST),
                output_fields=[*_FIELDS, "vector"],
                search_params={"metric_type": "IP"},
                consistency_level="Strong",
            )
        items: dict[int, Item] = {}
        ids, scores = [], []
        for feature, answer in zip(features, answers, strict=True):
            found = {int(hit["entity"]["id"]): hit["entity"] for hit in answer}
            there = np.array(list(found), np.int64)
            rows = np.array([entity["vector"] for entity in found.values()], np.float32).reshape(
                len(found), self.identity.dimension
            )
            near, similarity = best_of(there, exact_similarity(rows, feature), k)
            items |= {i: item_of(found[i]) for i in near.tolist()}
            ids.append(near)
            scores.append(similarity)
        return np.stack(ids), np.stack(scores), items

    def method(self) -> dict[str, Any]:
        """How it searches."""
        return {"method": "exact", "server": "Milvus"}

    def rows(self) -> Rows:
        """All features."""
        self._require_current()
        parts: Rows = []
        rows = self._query("id > 0", ("id", "vector"))
        while part := [row for _, row in zip(range(_MOST), rows, strict=False)]:
            parts.append(
                (np.array([row["id"] for row in part], np.int64), np.array([row["vector"] for row in part], np.float32))
            )
        return parts

    def rebuild(self, model: ModelIdentity, ids: Sequence[int], vectors: np.ndarray, version: int) -> None:
        """Fill a new collection, then exchange the names."""
        with self._lock, self._explained():
            name, former = f"{self._name}_{secrets.token_hex(4)}", self._collection
            create_images(self._client, self._milvus, name, model.dimension)
            try:
                by_id = dict(zip(map(int, ids), vectors, strict=True))
                rows = self._query("id > 0", (*_FIELDS, "thumbnail"))
                while part := [row for _, row in zip(range(AT_ONCE), rows, strict=False)]:
                    self._client.upsert(name, [with_vector(row, by_id, model.dimension, self.where) for row in part])
                if self.version() != version:
                    raise changed_meanwhile(self.where)
                state = {"model": model.as_json(), "collection": name, "change": new_ids(1)[0]}
                write_meta(self._client, self._name, STATE, state)
            except BaseException:
                self._client.drop_collection(name)
                raise
            self.identity, self._collection = model, name
            self._client.drop_collection(former)

    def compact(self) -> None:
        """Ask the server to give the space of removed images back, which it does in its own time."""
        with self._explained():
            self._client.compact(self._collection)

    def _query(self, condition: str, fields: Sequence[str], limit: int = -1) -> Iterator[dict[str, Any]]:
        """Rows, a page at a time. Pages follow each other by the primary key."""
        if limit == 0:
            return
        with self._explained():
            pages = self._client.query_iterator(
                self._collection,
                batch_size=1000,
                limit=limit,
                filter=condition,
                output_fields=list(fields),
                consistency_level="Strong",
            )
            try:
                while part := pages.next():
                    yield from part
            finally:
                pages.close()

    def _state(self) -> dict[str, Any]:
        with self._explained():
            if not self._client.has_collection(meta_collection(self._name)):
                raise missing(self.where)
            rows = self._client.query(meta_collection(self._name), filter=f'name == "{STATE}"', output_fields=["value"])
        try:
            content = json.loads(rows[0]["value"])
            return {"model": content["model"], "collection": content["collection"], "change": int(content["change"])}
        except (IndexError, KeyError, TypeError, ValueError) as error:
            raise GalleryError(
                "The collection is not a gallery of paddlex_feat.",
                where=self.where,
                fix="Give another Index.collection.",
                code="gallery-foreign",
            ) from error

    def _require_current(self) -> None:
        """Follow a rebuild. Raises GalleryError if the features are of another model."""
        state = self._state()
        if identity_in(state["model"], self.where) != self.identity:
            raise rebuilt(self.where)
        self._collection = str(state["collection"])

    def _changed(self) -> None:
        state = {**self._state(), "change": new_ids(1)[0]}
        write_meta(self._client, self._name, STATE, state)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        with _explained_at(self.where, self._milvus):
            yield


def _pymilvus() -> Any:
    """The client's package. Raises DependencyError without it."""
    require_package("pymilvus", "paddlex_feat[milvus]")
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # what it says comes as an error, too
    return importlib.import_module("pymilvus")


def _connected(milvus: Any, url: str, token: str | None) -> Any:
    # Its own 10 s, also between calls, are more pings than servers of gRPC allow: they close the connection.
    pings = {"grpc.keepalive_time_ms": 300_000, "grpc.keepalive_permit_without_calls": False}
    return milvus.MilvusClient(uri=url, token=token or "", timeout=_SECONDS, grpc_options=pings)


@contextmanager
def _explained_at(where: str, milvus: Any) -> Iterator[None]:
    """Turn the client's errors into ours."""
    try:
        yield
    except (milvus.MilvusException, OSError) as error:
        raise GalleryError(
            f"The Milvus server refused the request ({str(getattr(error, 'message', error))[:200]}).",
            where=where,
            fix="Check that the server runs and can be reached, and its token in the variable MILVUS_TOKEN.",
            code="gallery-server",
        ) from error
