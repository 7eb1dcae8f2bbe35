"""Many features in one file: .jsonl, .npz or .parquet."""

from __future__ import annotations

import importlib
import json
import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from paddlex_feat.errors import ConfigError, DependencyError, OutputError, as_output_error
from paddlex_feat.fileio.atomic import atomic_path, require_writable
from paddlex_feat.fileio.backups import backup
from paddlex_feat.fileio.npz import NpzWriter
from paddlex_feat.inference.results import FeatureResult, output_path

if TYPE_CHECKING:  # it needs OpenCV
    from paddlex_feat.inference.identity import ModelIdentity

log = logging.getLogger(__name__)
ROWS = 4096  # of a Parquet file that are collected before they are written: a row group


class Numbered(NamedTuple):
    """That rows have numbers, for a shard. The file says how wide they are even if there are none.

    Attributes:
        dimension: numbers of a feature.
        rows: of a row group of Parquet.
    """

    dimension: int
    rows: int


class Saver(Protocol):
    """Takes results one by one.

    Args:
        path: of the file.
        model: JSON that tells whose features they are; None: unknown.
        numbered: rows have numbers; None: they have not.
    """

    def __init__(self, path: Path, model: str | None = None, numbered: Numbered | None = None): ...

    def add(self, result: Mapping[str, Any], feature: np.ndarray, number: int = 0) -> None:
        """Write one result with its feature, float32 [D], or keep it until there is a group to write."""

    def close(self, notes: Mapping[str, str] | None = None) -> None:
        """Write what is left, and texts about the file by their names; the file is complete."""


class JsonLines:
    """A JSON object a line, with the keys that `save_to_json` writes, streamed. It names neither model nor numbers."""

    def __init__(self, path: Path, model: str | None = None, numbered: Numbered | None = None):
        self._stream = path.open("wb")

    def add(self, result: Mapping[str, Any], feature: np.ndarray, number: int = 0) -> None:
        """Write one line; `feature` is float32 [D]."""
        text = json.dumps({**result, "feature": feature.tolist()}, ensure_ascii=False, allow_nan=False)
        self._stream.write(_utf8(text) + b"\n")

    def close(self, notes: Mapping[str, str] | None = None) -> None:
        """Close the file."""
        self._stream.close()


class Npz:
    """features: float32 [N, D]; input_paths: text [N], "" for arrays; page_indices: int64 [N], -1 where there are none.

    Many paths are written without padding: see `NpzWriter.write_names`.
    If results have boxes, boxes: float32 [N, 4], nan where there are none; if the model is known, model: text [1].
    With numbers, index: int64 [N], and the paths are texts of `NpzWriter.write_texts`, input_path.
    Features wait in a temporary file without a name; paths and page indices in memory.
    """

    def __init__(self, path: Path, model: str | None = None, numbered: Numbered | None = None):
        self._path, self._model, self._numbered = path, model, numbered
        self._features = tempfile.TemporaryFile(dir=path.parent)  # noqa: SIM115 - closed by `close`
        self._paths: list[str] = []
        self._pages: list[int] = []
        self._boxes: dict[int, list[float]] = {}  # by the number of the result
        self._numbers: list[int] = []
        self._width = numbered.dimension if numbered else 0

    def add(self, result: Mapping[str, Any], feature: np.ndarray, number: int = 0) -> None:
        """Append `feature`, float32 [D], to the temporary file, and keep the path and the page index."""
        if "box" in result:
            self._boxes[len(self._paths)] = result["box"]
        self._features.write(feature.tobytes())
        self._width = len(feature)
        self._paths.append(result["input_path"] or "")
        self._pages.append(result.get("page_index", -1))
        self._numbers.append(number)

    def close(self, notes: Mapping[str, str] | None = None) -> None:
        """Write the arrays, and close the temporary file."""
        with self._features, NpzWriter(self._path) as writer:
            shape = (len(self._paths), self._width)
            self._features.truncate(4 * shape[0] * shape[1])  # a Ctrl-C can have come between two lines above
            self._features.seek(0)
            writer.write("features", np.dtype(np.float32), shape, iter(lambda: self._features.read(2**20), b""))
            if self._numbered is None:
                writer.write_names("input_paths", self._paths)
            else:
                writer.write_texts("input_path", self._paths)
                writer.write_array("index", np.array(self._numbers, np.int64))
            writer.write_array("page_indices", np.array(self._pages, np.int64))
            if self._boxes:
                boxes = np.full((shape[0], 4), np.nan, np.float32)
                boxes[list(self._boxes)] = list(self._boxes.values())
                writer.write_array("boxes", boxes)
            texts = {} if self._model is None else {"model": self._model}
            for name, text in {**texts, **(notes or {})}.items():
                writer.write_array(name, np.array([text]))


class Parquet:
    """Columns input_path (text), page_index (int32), box (float32 [4]) and feature (float32 [D]), in row groups.

    If the model is known, the file's metadata have it under "model". With numbers, there is a column index (int64).
    """

    def __init__(self, path: Path, model: str | None = None, numbered: Numbered | None = None):
        self._arrow: Any = importlib.import_module("pyarrow")
        self._path, self._model, self._numbered = path, model, numbered
        self._most = numbered.rows if numbered else ROWS
        self._writer: Any = None
        self._rows: list[tuple[str | None, int | None, list[float] | None, int, np.ndarray]] = []

    def add(self, result: Mapping[str, Any], feature: np.ndarray, number: int = 0) -> None:
        """Keep one row, whose `feature` is float32 [D]; a full row group is written."""
        self._rows.append((result["input_path"], result.get("page_index"), result.get("box"), number, feature))
        if len(self._rows) == self._most:
            self._flush()

    def _flush(self) -> None:
        arrow = self._arrow
        paths, pages, boxes, numbers, rows = zip(*self._rows, strict=True) if self._rows else ((),) * 5
        features = (
            np.stack(rows) if rows else np.empty((0, self._numbered.dimension if self._numbered else 0), np.float32)
        )
        names = [None if path is None else _utf8(path).decode() for path in paths]
        columns = {
            "input_path": arrow.array(names, arrow.string()),
            "page_index": arrow.array(pages, arrow.int32()),
            "box": arrow.array(boxes, arrow.list_(arrow.float32(), 4)),
            **({"index": arrow.array(numbers, arrow.int64())} if self._numbered else {}),
            "feature": arrow.FixedSizeListArray.from_arrays(arrow.array(features.reshape(-1)), features.shape[1]),
        }
        table = arrow.table(columns, metadata=None if self._model is None else {"model": self._model})
        if self._writer is None:
            self._writer = importlib.import_module("pyarrow.parquet").ParquetWriter(str(self._path), table.schema)
        self._rows = []  # before they are written: a Ctrl-C between the two lines must not write them twice
        self._writer.write_table(table)

    def close(self, notes: Mapping[str, str] | None = None) -> None:
        """Write the rows that are left, and close the file."""
        if self._rows or (self._numbered and self._writer is None):
            self._flush()
        if self._writer is not None:
            if notes:
                self._writer.add_key_value_metadata(dict(notes))
            self._writer.close()


SAVERS: dict[str, type[Saver]] = {".jsonl": JsonLines, ".npz": Npz, ".parquet": Parquet}


def _utf8(text: str) -> bytes:
    r"""A file name that is not UTF-8 holds lone surrogates, which become \udcff."""
    return text.encode("utf-8", errors="backslashreplace")


class _Discarded(Exception):
    """Ends the block of `atomic_path`, which then removes its temporary file."""


class FeatureFile:
    """One file for many results; made by `feature_file`.

    Attributes:
        count: results so far.
        placed: whether the complete file exists under its name.
        identity: of the model; to be set before the first result. None: the file does not tell.
    """

    def __init__(self, path: Path, kind: type[Saver]):
        self.count = 0
        self.placed = False
        self.identity: ModelIdentity | None = None
        self._path = path
        self._kind = kind
        self._saver: Saver | None = None
        self._temporary = ExitStack()
        self._width = 0
        self._failed = False

    def add(self, result: FeatureResult) -> None:
        """Add one result, with its attribute `feature` as float32. Raises OutputError, also for what is no result."""
        self.add_row(result, self._checked(result))

    def add_row(self, result: Mapping[str, Any], feature: np.ndarray) -> None:
        """Add what a result says, with its feature, float32 [D], which is known to be sound. Raises OutputError."""
        try:
            with as_output_error(self._path):
                if self._saver is None:  # only now: without a result nothing is written
                    model = None if self.identity is None else json.dumps(self.identity.as_json())
                    self._saver = self._kind(self._temporary.enter_context(atomic_path(self._path)), model)
                self._saver.add(result, feature)
        except Exception:
            self._failed = True
            raise
        self.count += 1
        self._width = len(feature)

    def _checked(self, result: FeatureResult) -> np.ndarray:
        where, fix = f"{self._path}, result {self.count} (from 0)", "Give the results of `predict`."
        if not isinstance(result, FeatureResult):
            what = f"An object of type {type(result).__name__} is not a FeatureResult."
            raise OutputError(what, where=where, fix=fix, code="result-type")
        try:
            with np.errstate(over="ignore"):  # values too large for float32 become infinite, and are refused below
                feature = np.array(result.feature, np.float32)
        except (TypeError, ValueError) as error:
            what = f"The feature is not an array of numbers ({error})."
            raise OutputError(what, where=where, fix=fix, code="feature-invalid") from error
        if feature.ndim != 1 or not feature.size or not np.isfinite(feature).all():
            what = f"The feature, of shape {feature.shape}, is not a vector of finite numbers."
            raise OutputError(what, where=where, fix=fix, code="feature-invalid")
        if self._width not in (0, len(feature)):
            what = f"The feature has {len(feature)} numbers, the earlier ones have {self._width}."
            fix = "Save the results of different models in separate files."
            raise OutputError(what, where=where, fix=fix, code="feature-width")
        return feature

    def close(self) -> None:
        """Give the file its name, if every result could be written; otherwise discard it. Raises OutputError."""
        if self._saver is None or self._failed or not self.count:
            self._discard()
            return
        with self._temporary:
            self._saver.close()
            if self._path.exists():
                log.info("%s was there already and is now %s", self._path, backup(self._path).name)
        self.placed = True

    def discard(self) -> None:
        """Leave no file when the block ends: what was added is of no use without the rest."""
        self._failed = True

    def _discard(self) -> None:
        if self._saver is None:
            return
        with suppress(_Discarded, OutputError), self._temporary:
            with suppress(Exception):  # such as that of a full disk, which add has raised already
                self._saver.close()
            raise _Discarded


@contextmanager
def feature_file(path: Path) -> Iterator[FeatureFile]:
    """Collect results in a temporary file, which becomes `path` when the block ends, by an error or Ctrl-C too.

    Without a result, and after one that could not be written, nothing is placed. A file that has the name already
    is kept as `.bak`, `.bak.1`, …

    Raises ConfigError for a suffix that is none of SAVERS, DependencyError, OutputError.
    """
    kind = require_format(path)
    require_writable(path.parent)
    file = FeatureFile(path, kind)
    try:
        yield file
    finally:
        file.close()


def save_features(results: Iterable[FeatureResult], path: str | Path, identity: ModelIdentity | None = None) -> Path:
    """Write the results of `predict` to one file, as they come, in the form its suffix names.

    The feature is each result's attribute `feature`, as float32. .jsonl: a JSON object a line. .npz: `features`
    float32 [N, D], `input_paths`, `page_indices` and, if there are some, `boxes`, read by
    `numpy.load(path, allow_pickle=False)`. .parquet: columns input_path, page_index, box and feature. With `identity`,
    the model's, .npz and .parquet say whose features they are, and galleries of other models refuse them.

    Memory does not grow with the number of results but for the paths of .npz. If `results` raises, what came before
    is written first. Raises what `feature_file` and `output_path` do, and OutputError if there is no result, or one of
    another width.
    """
    path = output_path(path)
    with feature_file(path) as file:
        file.identity = identity
        for result in results:
            file.add(result)
    if not file.count:
        raise OutputError(
            "There is no result to write.", where=str(path), fix="Check the input of predict.", code="no-results"
        )
    return path


def require_format(path: Path) -> type[Saver]:
    """What writes a file of this suffix. Raises ConfigError for one of no SAVERS, DependencyError without pyarrow."""
    kind = SAVERS.get(path.suffix.lower())
    if kind is None:
        raise ConfigError(
            "The suffix names no known file format.",
            where=str(path),
            fix=f"Use one of {', '.join(SAVERS)}.",
            code="unknown-suffix",
        )
    if kind is Parquet:
        _require_pyarrow(path)
    return kind


def _require_pyarrow(path: Path) -> None:
    try:
        importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise DependencyError(
            f"Parquet files need pyarrow ({error}).",
            where=str(path),
            fix="pip install 'paddlex_feat[parquet]', or save as jsonl or npz.",
            code="package-missing",
        ) from error
