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
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from paddlex_feat.data.images.source import Box
from paddlex_feat.errors import GalleryError
from paddlex_feat.fileio.addresses import without_password
from paddlex_feat.inference.engines.spec import require_package
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.backend import Rows
from paddlex_feat.search.items import Item, NewItem, check_vector, texts_of
from paddlex_feat.search.nearest import best_of, exact_similarity

STATE = "state"  # the row of the small collection that names model, collection and change
_FIELDS = ("id", "key", "label", "path", "box", "data", "state", "added")
_TEXT, _LONG = 16384, 65535  # bytes of a VARCHAR; the second is Milvus's own limit
_AT_ONCE = 512  # images of a request, which has at most 64 MiB
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
            self.identity = _identity(state, self.where)
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
                if not client.has_collection(_meta_name(collection)):
                    name = f"{collection}_{secrets.token_hex(4)}"
                    _create_images(client, milvus, name, identity.dimension)
                    _create_meta(client, milvus, _meta_name(collection))
                    state = {"model": identity.as_json(), "collection": name, "change": 0}
                    _write_meta(client, collection, STATE, state)
            finally:
                client.close()
        return cls(url, collection, token)

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def version(self) -> int:
        """A number that every change gives another value."""
        return int(self._state()["change"])

    def meta(self) -> dict[str, Any]:
        """What the gallery says about itself."""
        with self._explained():
            rows = self._client.query(_meta_name(self._name), filter='name != ""', output_fields=["name", "value"])
        content = {str(row["name"]): json.loads(row["value"]) for row in rows}
        state = content.pop(STATE, {})
        return {**content, "model": state.get("model")}

    def set_meta(self, name: str, value: Any) -> None:
        """Say something about the gallery."""
        with self._explained():
            _write_meta(self._client, self._name, name, value)

    def count(self) -> int:
        """Number of images."""
        self._require_current()
        with self._explained():
            rows = self._client.query(self._collection, filter="", output_fields=["count(*)"])
        return int(rows[0]["count(*)"])

    def add(self, items: Sequence[NewItem]) -> list[int]:
        """Add images. Those of one request, _AT_ONCE, are there together."""
        rows = [_row(item, self.identity.dimension) for item in items]
        with self._lock:
            self._require_current()
            known = {item.key: item.id for item in self.find([item.key for item in items], None)}
            ids = [known.setdefault(item.key, fresh) for item, fresh in zip(items, _new_ids(len(items)), strict=True)]
            last = {item.key: {"id": i, **row} for item, i, row in zip(items, ids, rows, strict=True)}
            unique = list(last.values())  # of a key that is given twice, the last one
            with self._explained():
                for first in range(0, len(unique), _AT_ONCE):
                    self._client.upsert(self._collection, unique[first : first + _AT_ONCE])
            self._changed()
        return ids

    def remove(self, ids: Sequence[int]) -> int:
        """Remove images."""
        wanted = [int(i) for i in ids]
        count = 0
        with self._lock, self._explained():
            self._require_current()
            for first in range(0, len(wanted), _AT_ONCE):
                part = wanted[first : first + _AT_ONCE]
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
        for part in _parts(keys):
            conditions = [f"id > {int(after)}"]
            for name, wanted in (("key", part), ("label", labels)):
                if wanted is not None:
                    conditions.append(f"{name} in {json.dumps([text or '' for text in wanted], ensure_ascii=False)}")
            most = -1 if limit < 0 else limit - len(found)
            found += map(_item, self._query(" and ".join(conditions), _FIELDS, most))
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
            rows = np.array([entity["vector"] for entity in found.values()], np.float32).reshape(len(found), -1)
            near, similarity = best_of(there, exact_similarity(rows, feature), k)
            items |= {i: _item(found[i]) for i in near.tolist()}
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

    def rebuild(self, model: ModelIdentity, ids: Sequence[int], vectors: np.ndarray) -> None:
        """Fill a new collection, then exchange the names."""
        with self._lock, self._explained():
            name, former = f"{self._name}_{secrets.token_hex(4)}", self._collection
            before = self.version()
            _create_images(self._client, self._milvus, name, model.dimension)
            try:
                by_id = dict(zip(map(int, ids), vectors, strict=True))
                rows = self._query("id > 0", (*_FIELDS, "thumbnail"))
                while part := [row for _, row in zip(range(_AT_ONCE), rows, strict=False)]:
                    self._client.upsert(name, [_with_vector(row, by_id, model.dimension, self.where) for row in part])
                if self.version() != before:
                    raise _changed_meanwhile(self.where)
                state = {"model": model.as_json(), "collection": name, "change": _new_ids(1)[0]}
                _write_meta(self._client, self._name, STATE, state)
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
            if not self._client.has_collection(_meta_name(self._name)):
                raise GalleryError(
                    "The gallery does not exist.",
                    where=self.where,
                    fix="Build it with Global.mode=index, or give another Index.collection.",
                    code="gallery-missing",
                )
            rows = self._client.query(_meta_name(self._name), filter=f'name == "{STATE}"', output_fields=["value"])
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
        if _identity(state, self.where) != self.identity:
            raise GalleryError(
                "The images of the gallery have been embedded again with another model.",
                where=self.where,
                fix="Open it again, with that model.",
                code="gallery-rebuilt",
            )
        self._collection = str(state["collection"])

    def _changed(self) -> None:
        state = {**self._state(), "change": _new_ids(1)[0]}
        _write_meta(self._client, self._name, STATE, state)

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
            f"The Milvus server does not do it ({str(getattr(error, 'message', error))[:200]}).",
            where=where,
            fix="Check that the server runs and can be reached, and its token in the variable MILVUS_TOKEN.",
            code="gallery-server",
        ) from error


def _create_images(client: Any, milvus: Any, name: str, dimension: int) -> None:
    kinds = milvus.DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", kinds.INT64, is_primary=True)
    for field, length in (("key", _TEXT), ("label", _TEXT), ("path", _TEXT), ("box", 256), ("state", 256)):
        schema.add_field(field, kinds.VARCHAR, max_length=length)
    for field in ("data", "thumbnail"):
        schema.add_field(field, kinds.VARCHAR, max_length=_LONG)
    schema.add_field("added", kinds.DOUBLE)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=dimension)
    index = client.prepare_index_params()
    index.add_index(field_name="vector", index_type="FLAT", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def _create_meta(client: Any, milvus: Any, name: str) -> None:
    kinds = milvus.DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("name", kinds.VARCHAR, is_primary=True, max_length=256)
    schema.add_field("value", kinds.VARCHAR, max_length=_LONG)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=2)  # Milvus wants one in every collection
    index = client.prepare_index_params()
    index.add_index(field_name="vector", index_type="FLAT", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def _write_meta(client: Any, collection: str, name: str, value: Any) -> None:
    client.upsert(_meta_name(collection), [{"name": name, "value": json.dumps(value), "vector": [0.0, 0.0]}])


def _meta_name(collection: str) -> str:
    return f"{collection}_gallery"


def _identity(state: dict[str, Any], where: str) -> ModelIdentity:
    identity = ModelIdentity.from_json(state["model"])
    if identity is None:
        raise GalleryError(
            "The gallery does not say which model its features are of.",
            where=where,
            fix="Build it again.",
            code="gallery-foreign",
        )
    return identity


def _new_ids(count: int) -> list[int]:
    """Numbers in order of time, hardly ever the same in two processes; below 2^53, which all readers of JSON keep."""
    first = (time.time_ns() // 2**20 << 12) + secrets.randbelow(2**12)  # a step is a millisecond
    return list(range(first, first + count))


def _row(item: NewItem, dimension: int) -> dict[str, Any]:
    """All fields of an item except its id; None becomes "". Raises GalleryError for what Milvus cannot keep."""
    box, data = texts_of(item, dimension)
    for what, text, most in (("data", data, _LONG), ("key", item.key, _TEXT), ("label", item.label, _TEXT)):
        if text is not None and len(text.encode()) > most:
            raise GalleryError(
                f"The {what} of an image has more than {most} bytes, which Milvus does not take.",
                where=item.key[:200],
                fix="Make it shorter.",
                code=f"item-{'data' if what == 'data' else 'text'}",
            )
    small = base64.b64encode(item.thumbnail).decode() if item.thumbnail else ""
    return {
        "key": item.key,
        "label": item.label or "",
        "path": item.path or "",
        "box": box or "",
        "data": data or "",
        "state": item.state or "",
        "thumbnail": small if len(small) <= _LONG else "",
        "added": time.time(),
        "vector": np.asarray(item.vector, np.float32).tolist(),
    }


def _with_vector(row: dict[str, Any], vectors: dict[int, np.ndarray], dimension: int, where: str) -> dict[str, Any]:
    vector = vectors.get(int(row["id"]))
    if vector is None:
        raise _changed_meanwhile(where)
    check_vector(vector, dimension, str(row["key"]))
    return {**row, "vector": np.asarray(vector, np.float32).tolist()}


def _changed_meanwhile(where: str) -> GalleryError:
    return GalleryError(
        "The gallery was changed while its images were embedded again.",
        where=where,
        fix="Run it again while nobody adds or removes images.",
        code="gallery-changed",
    )


def _item(row: dict[str, Any]) -> Item:
    box = Box(*json.loads(row["box"])) if row["box"] else None
    data = json.loads(row["data"]) if row["data"] else None
    texts = (row["label"] or None, row["path"] or None)
    return Item(int(row["id"]), row["key"], *texts, box, data, row["state"] or None, float(row["added"]))


def _parts(keys: Sequence[str] | None) -> Iterable[Sequence[str] | None]:
    """Keys in parts that a filter holds; one part, None, for any."""
    return [None] if keys is None else [keys[i : i + _AT_ONCE] for i in range(0, len(keys), _AT_ONCE)]
