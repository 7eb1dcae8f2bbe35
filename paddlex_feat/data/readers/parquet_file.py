"""What a Parquet file says of itself: its columns, names of classes, and where images are; and its rows as text.

pyarrow, of the extra `parquet`, is imported when a file is opened.
"""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlex_feat.data.images.formats import BEGINNING, looks_like_image
from paddlex_feat.data.readers.columns import Columns
from paddlex_feat.data.readers.tables import text_of
from paddlex_feat.errors import DependencyError, FeatError
from paddlex_feat.fileio.reading import first_bytes

_IMAGES = ("image", "img", "picture", "photo", "imagebytes", "imgbytes", "imagedata", "bytes", "jpg", "jpeg", "png")
_MAX_ROWS = 20_000_000
_MAX_METADATA = 2**24  # bytes of the JSON with names of classes
_ROWS = 8192  # that are converted to text at once
_IMAGES_AT_ONCE = 16
_BUFFER = 2**20  # bytes of a column that are read at once


class Unreadable(Exception):
    """A file is damaged, or not of Parquet."""


def arrow() -> Any:
    """The module pyarrow, with pyarrow.parquet. Raises DependencyError."""
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError as error:
        raise DependencyError(
            f"Data sets in Parquet files need pyarrow ({error}).",
            where="Global.dataset_dir",
            fix="pip install 'paddlex_feat[parquet]'",
            code="pyarrow-missing",
        ) from None


@dataclass(frozen=True)
class Layout:
    """What the columns of a file are for.

    Attributes:
        columns: by name; `path` is the column of images, also of their bytes.
        image: how it has them: "path", "bytes", or "struct" of bytes and path.
        classes: names of the classes of columns that number them.
    """

    columns: Columns
    image: str
    classes: dict[str, list[str]]


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A pyarrow.parquet.ParquetFile that reads a little at a time. Raises Unreadable, also within the block."""
    parquet = arrow().parquet
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for its writer
            raise Unreadable("it is not a file")
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=_BUFFER, memory_map=False) as file:
            if file.metadata.num_rows > _MAX_ROWS:
                raise Unreadable(f"it declares {file.metadata.num_rows} rows; {_MAX_ROWS} are read")
            yield file
    except (Unreadable, FeatError, GeneratorExit):
        raise
    except Exception as error:  # pyarrow's own, and those of Python that a damaged file makes it raise
        raise Unreadable((str(error).splitlines() or [type(error).__name__])[0][:200]) from error


def is_parquet(path: Path) -> bool:
    """Whether a file begins as one of Parquet does."""
    try:
        return first_bytes(path, 4) == b"PAR1"
    except OSError:
        return False


def layout_of(file: Any) -> Layout | None:
    """The layout of an open file; None if it has no column of images or none of classes."""
    types = dict(zip(file.schema_arrow.names, file.schema_arrow.types, strict=True))
    features = _features(file.schema_arrow.metadata)
    classes = {name: names for name, feature in features.items() if (names := _class_names(feature))}
    declared = [name for name, feature in features.items() if feature.get("_type") == "Image"]
    usual = [name for word in _IMAGES for name in types if re.sub(r"[\s_]", "", name).lower() == word]
    held = next((name for name in (*declared, *usual) if name in types and _has_bytes(types[name])), None)
    numbered = next(iter(classes)) if len(classes) == 1 else None
    columns = Columns.of([name for name, kind in types.items() if _is_plain(kind)], held, numbered)
    if columns is None or columns.label not in types:
        return None
    kind = "path" if held is None else "bytes" if _is_binary(types[held]) else "struct"
    return Layout(columns, kind, classes)


def _features(metadata: dict[bytes, bytes] | None) -> dict[str, dict[str, Any]]:
    """The features that Hugging Face's `datasets` has written into a schema, by column; empty for none."""
    text = (metadata or {}).get(b"huggingface", b"")
    try:
        found = json.loads(text)["info"]["features"] if len(text) <= _MAX_METADATA else {}
    except (ValueError, RecursionError, KeyError, TypeError):
        return {}
    return {name: value for name, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}


def _class_names(feature: dict[str, Any]) -> list[str]:
    names = feature.get("names")
    if feature.get("_type") != "ClassLabel" or not isinstance(names, list):
        return []
    return names if all(isinstance(name, str) and name.isprintable() for name in names) else []


def _is_binary(kind: Any) -> bool:
    types = arrow().types
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _has_bytes(kind: Any) -> bool:
    if not arrow().types.is_struct(kind):
        return _is_binary(kind)
    return kind.get_field_index("bytes") >= 0 and _is_binary(kind.field("bytes").type)


def _is_plain(kind: Any) -> bool:
    """Whether values are texts, numbers, or lists of numbers."""
    types = arrow().types
    if types.is_dictionary(kind) or types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        kind = kind.value_type
    return bool(
        types.is_string(kind)
        or types.is_large_string(kind)
        or types.is_integer(kind)
        or types.is_floating(kind)
        or types.is_boolean(kind)
    )


def rows_of(file: Any, layout: Layout) -> Iterator[list[str]]:
    """The rows of a file: the values of `layout.columns.used()` as text; "" for bytes, and for what cannot be text."""
    used = layout.columns.used()
    wanted = used if layout.image == "path" else used[1:]
    for batch in file.iter_batches(batch_size=_ROWS, columns=wanted):
        texts = {name: _texts(batch.column(name), layout.classes.get(name)) for name in wanted}
        columns = [texts.get(name) or [""] * batch.num_rows for name in used]
        yield from map(list, zip(*columns, strict=True))


def _texts(column: Any, names: list[str] | None) -> list[str]:
    values = column.to_pylist()
    if names is None or not all(value is None or isinstance(value, int) for value in values):
        return [value if type(value) is str else text_of(value) or "" for value in values]
    known = dict(enumerate(names)) | {-1: "-1"}
    return [known.get(value, "") for value in values]


def images_of(file: Any, layout: Layout) -> Iterator[tuple[bytes | None, str]]:
    """Bytes and path of the image of each row; None and "" for what a row does not have."""
    name = layout.columns.path
    for batch in file.iter_batches(batch_size=_IMAGES_AT_ONCE, columns=[name]):
        for value in batch.column(name):
            content = value.as_py()
            if layout.image == "bytes":
                yield content, ""
            else:
                path = (content or {}).get("path")
                yield (content or {}).get("bytes"), path if isinstance(path, str) else ""


def holds_image(file: Any, layout: Layout) -> bool:
    """Whether the image of the first row is one, by how it begins."""
    content, path = next(images_of(file, layout), (None, ""))
    return bool(path) if content is None else looks_like_image(content[:BEGINNING])
