"""Files of features that are parts of one: written by jobs that do not know of each other, merged in any order.

A shard is a file of `writers` with the number of each image in the whole input, and with a record: of which model and
input it is, and what failed.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from paddlex_feat.data.shard import Shard
from paddlex_feat.errors import FeatError, ShardError
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.fileio.npz import NpzReader
from paddlex_feat.fileio.reading import open_file
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.inference.inputs.items import Item
from paddlex_feat.inference.results import FeatureResult
from paddlex_feat.inference.writers import ROWS, SAVERS, Numbered, require_format

FORMS = (".npz", ".parquet")
RECORD = "shard"  # name of the record in a file
_VERSION = 1
_FEWEST = 512  # rows of a group


class Inputs:
    """A stream of images that is counted, and whose names are hashed, as it is read.

    Attributes:
        count: images so far.
    """

    def __init__(self, stream: Iterable[Item]):
        self._stream, self._digest, self.count = stream, sha256(), 0

    def __iter__(self) -> Iterator[Item]:
        for item in self._stream:
            name = item.name.encode("utf-8", "surrogatepass")
            self._digest.update(b"%d %s" % (len(name), name))
            self.count += 1
            yield item

    @property
    def digest(self) -> str:
        """SHA-256 of the names so far."""
        return self._digest.hexdigest()


@dataclass(frozen=True)
class Record:
    """What a shard says of itself.

    Attributes:
        shard: which part it is.
        inputs: images of the whole input.
        digest: of their names, see `Inputs`.
        model: whose features it has.
        failed: number in the whole input, name and reason of each of its images that could not be used.
        left_out: files of the input's folders that were not read, counted by reason.
    """

    shard: Shard
    inputs: int
    digest: str
    model: ModelIdentity
    failed: tuple[tuple[int, str, str], ...] = ()
    left_out: Mapping[str, int] | None = None

    def as_text(self) -> str:
        """JSON."""
        return json.dumps({**asdict(self), "version": _VERSION, "left_out": dict(self.left_out or {})})

    @classmethod
    def from_text(cls, text: str, path: Path) -> Record:
        """The record of a file. Raises ShardError for one that is not of this program, or damaged."""
        try:
            told = json.loads(text)
            if told["version"] != _VERSION:
                raise ShardError(
                    f"The shard has version {told['version']!r} of the form, this program reads {_VERSION}.",
                    where=str(path),
                    fix="Merge it with the version of paddlex_feat that wrote it.",
                    code="shard-version",
                )
            shard, model = (
                Shard.parse("{number}/{count}".format(**told["shard"])),
                ModelIdentity.from_json(told["model"]),
            )
            failed = tuple((int(number), str(name), str(what)) for number, name, what in told["failed"])
            left_out = {str(reason): int(count) for reason, count in told["left_out"].items()}
            record = cls(shard, int(told["inputs"]), str(told["digest"]), _known(model), failed, left_out)
            if record.inputs < 0 or any(number not in record.numbers for number, _, _ in failed):
                raise ValueError("a number is not of this shard")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
            raise damaged(path, f"its record is not one of this program: {error!r}") from error
        return record

    @property
    def numbers(self) -> range:
        """The images of the whole input that are this shard's."""
        return range(self.shard.number, self.inputs, self.shard.count)

    def require_same_job(self, path: Path, other: Record, others: str) -> None:
        """Raise ShardError, with both names, unless both are parts of one job.

        Args:
            path: of this shard.
            other: the other record.
            others: what the other record is of.
        """
        difference = self.model.difference(other.model)
        if not difference and self.shard.count != other.shard.count:
            difference = f"of {self.shard.count} parts and of {other.shard.count}"
        if not difference and (self.inputs, self.digest) != (other.inputs, other.digest):
            difference = f"their inputs differ: {self.inputs} and {other.inputs} images"
            if self.inputs == other.inputs:
                difference = f"their {self.inputs} inputs have other names, or another order"
        if difference:
            raise ShardError(
                f"{path.name} and {others} are not of one job: {difference}.",
                where=str(path),
                fix="Move the files of another job away, then run the missing shards again.",
                code="shard-mixed",
            )


def _known(model: ModelIdentity | None) -> ModelIdentity:
    if model is None:
        raise ValueError("it names no model")
    return model


def damaged(path: Path, why: str) -> ShardError:
    """The error of a file that cannot be used."""
    fix = "Remove it, and run that shard again."
    return ShardError(f"The shard cannot be used: {why}.", where=str(path), fix=fix, code="shard-unusable")


class ShardWriter:
    """A shard that is being written; made by `shard_file`."""

    def __init__(self, path: Path, shard: Shard, model: ModelIdentity):
        # The groups are small, for a merge holds one of each shard.
        numbered = Numbered(model.dimension, max(_FEWEST, ROWS // shard.count))
        self._saver = SAVERS[path.suffix](path, json.dumps(model.as_json()), numbered)

    def add(self, number: int, result: FeatureResult) -> None:
        """Add the result of an image by its number in the whole input; numbers ascend."""
        self._saver.add(result, result.feature, number)

    def close(self, record: Record) -> None:
        """Complete the file."""
        self._saver.close({RECORD: record.as_text()})


@contextmanager
def shard_file(path: Path, shard: Shard, model: ModelIdentity) -> Iterator[ShardWriter]:
    """A shard that appears whole once the block ends, or not at all. Raises OutputError, and as `require_format`."""
    require_format(path)
    with atomic_path(path) as temporary:
        yield ShardWriter(temporary, shard, model)


class Row(NamedTuple):
    """A feature, float32 [D], and its number in the whole input."""

    number: int
    result: Mapping[str, Any]
    feature: np.ndarray


class ShardReader:
    """A shard that is read as a stream. A context manager.

    Args:
        path: an .npz or .parquet file.

    Attributes:
        record: what it says of itself.

    Raises ShardError for a file that is no shard.
    """

    def __init__(self, path: Path):
        self._path = path
        kinds: dict[str, type[_NpzRows | _ParquetRows]] = {".npz": _NpzRows, ".parquet": _ParquetRows}
        kind = kinds.get(path.suffix.lower())
        if kind is None:
            raise damaged(path, f"it is none of {', '.join(FORMS)}")
        with self._readable():
            open_file(path).close()  # Arrow's errors do not tell what the system says
            self._rows = kind(path)
        try:
            if self._rows.record is None:
                raise damaged(path, "it is a file of features, but no part of one")
            self.record = Record.from_text(self._rows.record, path)
            with self._readable():
                self._rows.require_dimension(self.record.model.dimension)
        except BaseException:
            self._rows.close()
            raise

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.close()

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (FeatError, MemoryError):
            raise
        except FileNotFoundError:
            fix = "Run that shard, or give the names of those that are there."
            raise ShardError("There is no such shard.", where=str(self._path), fix=fix, code="shard-missing") from None
        except OSError as error:
            if error.errno is None:  # of Arrow, for a file that it does not understand
                raise damaged(self._path, str(error)) from error
            raise ShardError(
                f"The shard cannot be read: {error.strerror}.",
                where=str(self._path),
                fix="Check the disk and the permissions, then merge again.",
                code="shard-unreadable",
            ) from error
        except Exception as error:  # of zipfile, NumPy and Arrow, which have many for a damaged file
            raise damaged(self._path, str(error) or type(error).__name__) from error

    def rows(self) -> Iterator[Row]:
        """All rows by number. Raises ShardError where they are not those that the record tells of."""
        own = self.record.numbers
        failed = {number for number, _, _ in self.record.failed}
        expected = (number for number in own if number not in failed)
        with self._readable():
            for row in self._rows:
                if row.number != next(expected, None):
                    raise damaged(self._path, f"image {row.number} does not follow")
                if len(row.feature) != self.record.model.dimension or not np.isfinite(row.feature).all():
                    raise damaged(self._path, f"the feature of image {row.number} is not one of its model")
                yield row
        missing = next(expected, None)
        if missing is not None:
            raise damaged(self._path, f"it ends before image {missing}")


class _NpzRows:
    """The rows of an .npz file."""

    def __init__(self, path: Path):
        self._file = NpzReader(path)
        self.record = self._file.text(RECORD) if RECORD in self._file.names else None

    def require_dimension(self, dimension: int) -> None:
        if self._file.shape("features")[1:] != (dimension,):
            raise ValueError(f"its features are not of {dimension} numbers")

    def __iter__(self) -> Iterator[Row]:
        paths, file = self._file.texts("input_path"), self._file
        numbers, pages = (
            file.array("index", np.int64, (len(paths),)),
            file.array("page_indices", np.int64, (len(paths),)),
        )
        boxes = file.array("boxes", np.float32, (len(paths), 4)) if "boxes" in file.names else None
        for place, feature in enumerate(file.rows("features", np.float32, len(paths))):
            result: dict[str, Any] = {"input_path": paths[place] or None}
            if pages[place] >= 0:
                result["page_index"] = int(pages[place])
            if boxes is not None and not np.isnan(boxes[place, 0]):
                result["box"] = boxes[place].tolist()
            yield Row(int(numbers[place]), result, feature)

    def close(self) -> None:
        self._file.close()


class _ParquetRows:
    """The rows of a Parquet file."""

    def __init__(self, path: Path):
        require_format(path)
        parquet = importlib.import_module("pyarrow.parquet")
        limit = 2**30  # bytes of the footer, which has the record with all that failed
        self._file = parquet.ParquetFile(str(path), pre_buffer=False, buffer_size=2**16, thrift_string_size_limit=limit)
        told = (self._file.metadata.metadata or {}).get(RECORD.encode())
        self.record = None if told is None else told.decode()

    def require_dimension(self, dimension: int) -> None:
        if self._file.schema_arrow.field("feature").type.list_size != dimension:
            raise ValueError(f"its features are not of {dimension} numbers")

    def _batches(self) -> Iterator[Any]:
        """The file group by group; Arrow's own iterator holds several times as much."""
        for group in range(self._file.num_row_groups):
            yield from self._file.read_row_group(group, use_threads=False).to_batches()

    def __iter__(self) -> Iterator[Row]:
        for batch in self._batches():
            columns = {name: batch.column(name) for name in ("input_path", "page_index", "box", "index", "feature")}
            dimension = columns["feature"].type.list_size
            features = np.asarray(columns["feature"].flatten()).astype(np.float32, copy=False).reshape(-1, dimension)
            named = {name: columns[name].to_pylist() for name in ("index", "input_path", "page_index", "box")}
            for number, name, page, box, feature in zip(*named.values(), features, strict=True):
                more = {"page_index": page, "box": box}
                yield Row(number, {"input_path": name, **{k: v for k, v in more.items() if v is not None}}, feature)

    def close(self) -> None:
        self._file.close()
