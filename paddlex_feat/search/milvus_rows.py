"""What a gallery is on a Milvus server: two collections, and the fields of an image."""

from __future__ import annotations

import base64
import json
import secrets
import time
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from paddlex_feat.data.images.source import Box
from paddlex_feat.errors import GalleryError
from paddlex_feat.search.items import Item, NewItem, check_vector, texts_of
from paddlex_feat.search.problems import changed_meanwhile

_TEXT, _LONG = 16384, 65535  # bytes of a VARCHAR; the second is Milvus's own limit
AT_ONCE = 512  # images of a request, which has at most 64 MiB


def create_images(client: Any, milvus: Any, name: str, dimension: int) -> None:
    """Make the collection of images."""
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


def create_meta(client: Any, milvus: Any, name: str) -> None:
    """Make the small collection of what the gallery says about itself."""
    kinds = milvus.DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("name", kinds.VARCHAR, is_primary=True, max_length=256)
    schema.add_field("value", kinds.VARCHAR, max_length=_LONG)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=2)  # Milvus wants one in every collection
    index = client.prepare_index_params()
    index.add_index(field_name="vector", index_type="FLAT", metric_type="IP")
    client.create_collection(name, schema=schema, index_params=index, consistency_level="Strong")


def write_meta(client: Any, collection: str, name: str, value: Any) -> None:
    """Set what the gallery says about itself."""
    client.upsert(meta_collection(collection), [{"name": name, "value": json.dumps(value), "vector": [0.0, 0.0]}])


def meta_collection(collection: str) -> str:
    """Name of the small collection."""
    return f"{collection}_gallery"


def new_ids(count: int) -> list[int]:
    """Numbers in order of time, hardly ever the same in two processes; below 2^53, which all readers of JSON keep."""
    first = (time.time_ns() // 2**20 << 12) + secrets.randbelow(2**12)  # a step is a millisecond
    return list(range(first, first + count))


def row_of(item: NewItem, dimension: int) -> dict[str, Any]:
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


def with_vector(row: dict[str, Any], vectors: dict[int, np.ndarray], dimension: int, where: str) -> dict[str, Any]:
    """A row of Milvus with its image's feature of another model."""
    vector = vectors.get(int(row["id"]))
    if vector is None:
        raise changed_meanwhile(where)
    check_vector(vector, dimension, str(row["key"]))
    return {**row, "vector": np.asarray(vector, np.float32).tolist()}


def item_of(row: dict[str, Any]) -> Item:
    """The image of a row."""
    box = Box(*json.loads(row["box"])) if row["box"] else None
    data = json.loads(row["data"]) if row["data"] else None
    texts = (row["label"] or None, row["path"] or None)
    return Item(int(row["id"]), row["key"], *texts, box, data, row["state"] or None, float(row["added"]))


def in_parts(keys: Sequence[str] | None) -> Iterable[Sequence[str] | None]:
    """Keys in parts that a filter holds; one part, None, for any."""
    return [None] if keys is None else [keys[i : i + AT_ONCE] for i in range(0, len(keys), AT_ONCE)]
