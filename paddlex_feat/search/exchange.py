"""Galleries as files of others: NumPy's .npz, Parquet, and PaddleX's vector.index with id_map.yaml; both ways."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import yaml

from paddlex_feat.data.images.source import Box
from paddlex_feat.errors import GalleryError
from paddlex_feat.fileio import safe_yaml
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.fileio.npz import NpzWriter, read_names
from paddlex_feat.inference.engines.spec import require_package
from paddlex_feat.inference.extractor import unit_rows
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.items import Item, NewItem

INDEX, ID_MAP = "vector.index", "id_map.yaml"  # PaddleX's names
_TEXTS = ("keys", "labels", "paths", "data", "input_paths")  # arrays of a file

_ROWS = 4096  # that are added in one transaction
_CONVERT_SECONDS = 600
_MAX_TEXT_BYTES = 2**28  # of the texts of a .npz file
# In a process of its own: faiss reads sizes from the file as they are, and may crash or take any memory.
_READ_INDEX = """
import sys
sys.path[:] = [place for place in sys.path if place]
import faiss, numpy
try:
    import resource
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[3]), int(sys.argv[3])))
except ImportError:
    pass

def in_lists(index):
    # What was removed leaves a gap in these numbers, and none in the ids of IndexIDMap: the order is what both keep.
    lists, numbers, rows = index.invlists, [numpy.empty(0, int)], [numpy.empty((0, index.d), numpy.float32)]
    for i in range(index.nlist):
        if size := lists.list_size(i):
            numbers.append(faiss.rev_swig_ptr(lists.get_ids(i), size).copy())
            codes = faiss.rev_swig_ptr(lists.get_codes(i), size * index.code_size).copy()
            rows.append(codes.view(numpy.float32).reshape(size, index.d))
    numbers = numpy.concatenate(numbers)
    if len(numpy.unique(numbers)) < len(numbers):
        raise ValueError("images were added to an IVF index after others were removed: faiss has mixed up their ids")
    return numpy.concatenate(rows)[numpy.argsort(numbers)]

whole = index = faiss.read_index(sys.argv[1])
ids = numpy.arange(index.ntotal)
if hasattr(whole, "id_map"):
    ids = faiss.vector_to_array(whole.id_map)
    index = faiss.downcast_index(whole.index)
rows = in_lists(index) if isinstance(index, faiss.IndexIVFFlat) else index.reconstruct_n(0, index.ntotal)
if len(ids) != len(rows):
    raise ValueError(f"{len(ids)} ids and {len(rows)} features")
numpy.savez(sys.argv[2], ids=ids.astype(numpy.int64), features=rows.astype(numpy.float32))
"""


def export_gallery(gallery: Gallery, form: str, folder: Path) -> list[Path]:
    """Write a gallery as npz, parquet or paddlex into a folder. Returns the files. Raises OutputError."""
    folder.mkdir(parents=True, exist_ok=True)
    return {"npz": _write_npz, "parquet": _write_parquet, "paddlex": _write_paddlex}[form](gallery, folder)


def import_gallery(gallery: Gallery, path: Path) -> int:
    """Add the images of a file of `export_gallery`, or of features.npz of mode predict, or of PaddleX's folder.

    Features that are said to be of another model are refused; PaddleX's files do not say it. Returns their number.
    """
    if path.is_dir() or path.name == INDEX:
        items = _read_paddlex(gallery, path if path.is_dir() else path.parent)
    elif path.suffix.lower() == ".npz":
        items = _read_npz(gallery, path)
    elif path.suffix.lower() == ".parquet":
        items = _read_parquet(gallery, path)
    else:
        raise _unusable(path, "it is neither .npz nor .parquet, nor a folder of PaddleX")
    count = 0
    while part := list(islice(items, _ROWS)):
        count += len(gallery.add_items(part))
    return count


def _all(gallery: Gallery) -> tuple[list[Item], np.ndarray]:
    """Items and features of one moment, float32 [N, D], by id."""
    version, parts, found = gallery.version(), list(gallery.rows()), gallery.items()
    if gallery.version() != version:  # another process changes it
        return _all(gallery)
    ids = np.concatenate([ids for ids, _ in parts]) if parts else np.empty(0, np.int64)
    rows = np.concatenate([r for _, r in parts]) if parts else np.empty((0, gallery.identity.dimension), np.float32)
    order = np.argsort(ids)
    known = {item.id: item for item in found}
    there = [place for place in order.tolist() if int(ids[place]) in known]
    return [known[int(ids[place])] for place in there], rows[there]


def _columns(items: list[Item]) -> dict[str, list[Any]]:
    boxes = [[np.nan] * 4 if item.box is None else list(item.box) for item in items]
    return {
        "keys": [item.key for item in items],
        "labels": [item.label or "" for item in items],
        "paths": [item.path or "" for item in items],
        "data": ["" if item.data is None else json.dumps(item.data, ensure_ascii=False) for item in items],
        "boxes": boxes,
    }


def _write_npz(gallery: Gallery, folder: Path) -> list[Path]:
    items, rows = _all(gallery)
    columns, path = _columns(items), folder / "features.npz"
    widest = sum(max(map(len, texts), default=0) for name, texts in columns.items() if name != "boxes")
    if 4 * widest * len(items) > _MAX_TEXT_BYTES:
        what = f"NumPy's texts are as wide as the longest one: they would take {4 * widest * len(items) >> 20} MiB."
        fix = "Use Index.format=parquet."
        raise GalleryError(what, where=str(path), fix=fix, code="export-too-wide")
    arrays = {"features": rows, **{name: np.array(values, str) for name, values in columns.items() if name != "boxes"}}
    arrays["boxes"] = np.array(columns["boxes"], np.float64).reshape(len(items), 4)
    arrays["model"] = np.array([json.dumps(gallery.identity.as_json())])
    with atomic_path(path) as temporary, NpzWriter(temporary) as writer:
        for name, array in arrays.items():
            writer.write(name, array.dtype, array.shape, [np.ascontiguousarray(array).tobytes()])
    return [path]


def _write_parquet(gallery: Gallery, folder: Path) -> list[Path]:
    arrow, parquet = _package("pyarrow", "parquet"), _package("pyarrow.parquet", "parquet")
    items, rows = _all(gallery)
    columns, path = _columns(items), folder / "features.parquet"
    boxes = [None if item.box is None else list(item.box) for item in items]
    table = arrow.table(
        {
            "key": columns["keys"],
            "label": columns["labels"],
            "path": columns["paths"],
            "data": columns["data"],
            "box": arrow.array(boxes, arrow.list_(arrow.float64(), 4)),
            "feature": arrow.FixedSizeListArray.from_arrays(arrow.array(rows.reshape(-1)), rows.shape[1]),
        }
    )
    table = table.replace_schema_metadata({"model": json.dumps(gallery.identity.as_json())})
    with atomic_path(path) as temporary:
        parquet.write_table(table, str(temporary))
    return [path]


def _write_paddlex(gallery: Gallery, folder: Path) -> list[Path]:
    """PaddleX numbers images from 0 in order of adding."""
    faiss = _package("faiss", "search")
    items, rows = _all(gallery)
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(gallery.identity.dimension))
    index.add_with_ids(np.ascontiguousarray(rows), np.arange(len(items), dtype=np.int64))
    labels = {number: item.label if item.label is not None else item.key for number, item in enumerate(items)}
    with atomic_path(folder / INDEX) as temporary:
        faiss.write_index(index, str(temporary))
    with atomic_path(folder / ID_MAP) as temporary:
        content = {"id_map": labels, "metric_type": "IP", "index_type": "Flat"}
        temporary.write_text(yaml.safe_dump(content, allow_unicode=True, sort_keys=False), encoding="utf-8")
    return [folder / INDEX, folder / ID_MAP]


def _read_npz(gallery: Gallery, path: Path) -> Iterator[NewItem]:
    try:
        with np.load(path, allow_pickle=False) as content:
            names = set(content.files)
            _require_size(path)
            rows = content["features"]
            model = json.loads(str(content["model"][0])) if "model" in names else None
            found = {name: read_names(content, name) for name in _TEXTS}
            boxes = content["boxes"] if "boxes" in names else None
            pages = content["page_indices"] if "page_indices" in names else None
    except Exception as error:  # noqa: BLE001 - NumPy and zipfile document none of theirs for damaged files
        raise _unusable(path, f"it cannot be read ({type(error).__name__})") from None
    texts: dict[str, Any] = {name: column for name, column in found.items() if column is not None}
    keys = texts.get("keys", texts.get("input_paths"))
    columns = [column for column in (keys, *texts.values(), boxes, pages) if column is not None]
    if keys is None or rows.ndim != 2 or rows.dtype.kind != "f" or any(len(column) != len(rows) for column in columns):
        raise _unusable(path, "it has no features with a key or path each")
    _require_model(gallery, model, path)
    if "keys" not in texts:
        texts["paths"], keys = keys, _own_keys(list(map(str, keys)), boxes, pages)
    yield from _items(path, rows, list(map(str, keys)), texts, boxes)


def _own_keys(paths: list[Any], boxes: Any, pages: Any) -> list[str]:
    """Keys of the results of mode predict, as `Gallery.add` makes them: the path, with its page and box."""
    keys = []
    for number, path in enumerate(paths):
        page = "" if pages is None or pages[number] is None or pages[number] < 0 else f" page {pages[number]}"
        box = "" if boxes is None or not np.isfinite(boxes[number]).all() else f"[{Box(*map(float, boxes[number]))}]"
        keys.append(f"{path}{page}{box}" if path else "")
    return keys


def _read_parquet(gallery: Gallery, path: Path) -> Iterator[NewItem]:
    parquet = _package("pyarrow.parquet", "parquet")
    try:
        file = parquet.ParquetFile(str(path))
        model = json.loads((file.schema_arrow.metadata or {}).get(b"model", b"null"))
        names = set(file.schema_arrow.names)
        _require_model(gallery, model, path)
        for batch in file.iter_batches(_ROWS):
            table = batch.to_pydict()
            rows = np.array(table["feature"], np.float32)
            texts = {f"{name}s": [v or "" for v in table[name]] for name in ("label", "path") if name in names}
            texts["data"] = [v or "" for v in table["data"]] if "data" in names else [""] * len(rows)
            boxes = [[np.nan] * 4 if b is None else b for b in table["box"]] if "box" in names else None
            keys = table["key"] if "key" in names else _own_keys(table["input_path"], boxes, table.get("page_index"))
            if "key" not in names:
                texts["paths"] = [value or "" for value in table["input_path"]]
            yield from _items(path, rows, keys, texts, None if boxes is None else np.array(boxes, np.float64))
    except GalleryError:
        raise
    except Exception as error:  # noqa: BLE001 - pyarrow documents none of its errors for damaged files
        raise _unusable(path, f"it cannot be read ({type(error).__name__})") from None


def _items(path: Path, rows: np.ndarray, keys: list[Any], texts: Any, boxes: np.ndarray | None) -> Iterator[NewItem]:
    for number, key in enumerate(keys):
        label, file, data = (str(texts[n][number]) if n in texts else "" for n in ("labels", "paths", "data"))
        box = None if boxes is None or not np.isfinite(boxes[number]).all() else Box(*boxes[number].tolist())
        try:
            value = json.loads(data) if data else None
        except (ValueError, RecursionError):
            raise _unusable(path, f"the data of {str(key)[:80]!r} is not JSON") from None
        yield NewItem(str(key), rows[number], label or None, file or None, box, value)


def _read_paddlex(gallery: Gallery, folder: Path) -> Iterator[NewItem]:
    labels = _read_id_map(folder / ID_MAP)
    ids, rows = _read_index(folder / INDEX)
    if rows.ndim != 2 or rows.shape[1] != gallery.identity.dimension:
        raise _unusable(folder / INDEX, f"its features do not have {gallery.identity.dimension} numbers")
    for i, row in zip(ids.tolist(), unit_rows(rows), strict=True):
        yield NewItem(f"{folder}#{i}", row, labels.get(i) or None)


def _read_id_map(path: Path) -> dict[int, str]:
    try:
        content, _ = safe_yaml.read(safe_yaml.read_text(path))
        return {int(i): str(label) for i, label in content["id_map"].items()}
    except OSError as error:
        raise _unusable(path, f"it cannot be read ({error.strerror})") from None
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _unusable(path, f"it is not PaddleX's map of ids ({type(error).__name__})") from None


def _read_index(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Ids and features of a faiss file, int64 [N] and float32 [N, D]."""
    _package("faiss", "search")
    if not path.is_file():
        raise _unusable(path, "it does not exist")
    with tempfile.TemporaryDirectory() as folder:
        target, most = Path(folder, "rows.npz"), 2**32 + 8 * path.stat().st_size
        words = [sys.executable, "-c", _READ_INDEX, str(path.resolve()), str(target), str(most)]
        try:
            done = subprocess.run(  # noqa: S603
                words, capture_output=True, text=True, timeout=_CONVERT_SECONDS, cwd=folder
            )
        except subprocess.TimeoutExpired:
            raise _unusable(path, f"faiss does not read it in {_CONVERT_SECONDS} s") from None
        if done.returncode or not target.is_file():
            last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
            raise _unusable(path, f"faiss cannot read it ({last[:200]})")
        with np.load(target, allow_pickle=False) as content:
            return content["ids"], content["features"]


def _require_size(path: Path) -> None:
    """Raise ValueError for an archive that declares more than it has: our own are not compressed."""
    with zipfile.ZipFile(path) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > 4 * path.stat().st_size + 2**20:
            raise ValueError("it expands too much")


def _require_model(gallery: Gallery, model: Any, path: Path) -> None:
    """Raise GalleryError for features of another model; a file without a model is taken, with its own dimension."""
    if model is None:
        return
    identity = ModelIdentity.from_json(model)
    if identity is None:
        raise _unusable(path, "it does not say which model its features are of")
    gallery.require_same(identity)


def _package(name: str, extra: str) -> ModuleType:
    require_package(name.partition(".")[0], f"paddlex_feat[{extra}]")
    return importlib.import_module(name)


def _unusable(path: Path, reason: str) -> GalleryError:
    return GalleryError(
        f"The file cannot be imported: {reason}.",
        where=str(path),
        fix="Give features.npz, features.parquet, or PaddleX's folder with vector.index and id_map.yaml.",
        code="import-unusable",
    )
