"""What jobs that do not know of each other have found in their part of the images, as files that one check reads."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

from paddlex_feat.checks.image_info import ImageInfo
from paddlex_feat.checks.inspection import VERSION, inspect_all, known_info
from paddlex_feat.data.images.source import picture_of
from paddlex_feat.data.shard import Shard
from paddlex_feat.errors import FeatError, ShardError
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.fileio.npz import NpzReader, NpzWriter

_NAME = re.compile(r"inspection-\d+-of-\d+\.npz")


def path_of(folder: Path, shard: Shard) -> Path:
    """The file of a shard."""
    return folder / f"inspection-{shard.name}.npz"


def parts_of(files: Sequence[str], count: int) -> list[list[str]]:
    """The images of each shard: every n-th picture, with all its boxes, so that none is read twice."""
    pictures: dict[object, int] = {}
    parts: list[list[str]] = [[] for _ in range(count)]
    for file in files:
        parts[pictures.setdefault(picture_of(file), len(pictures)) % count].append(file)
    return parts


def inspect_shard(folder: Path, shard: Shard, files: Sequence[str], workers: int) -> tuple[dict[str, ImageInfo], bool]:
    """What is known of the shard's own images, and whether its file was there already.

    Args:
        folder: of the files of all shards.
        shard: which one.
        files: all images of the data set.
        workers: threads.

    Raises ShardError if the file is there, and is of other images; OutputError.
    """
    path, own, digest = path_of(folder, shard), parts_of(files, shard.count)[shard.number], _digest(files)
    if path.exists():
        with _readable(path) as reader:
            _require_job(path, reader, shard.count, len(files), digest)
            return dict(zip(own, _infos(reader, len(own)), strict=True)), True
    found = inspect_all(own, workers, hashed=True)
    record = json.dumps({"version": VERSION, "shard": asdict(shard), "images": len(files), "digest": digest})
    with atomic_path(path) as temporary, NpzWriter(temporary) as writer:
        writer.write_texts("info", [json.dumps(asdict(info)) for info in found.values()])
        writer.write_texts("record", [record])
    return found, False


def inspected(place: Path, files: Sequence[str]) -> dict[str, ImageInfo]:
    """What all shards have found, for all images of a data set.

    Args:
        place: the folder of the shards' files, or the folder Global.output of their jobs.
        files: all images.

    Raises ShardError for shards that are missing, repeated, damaged, or of other images.
    """
    folders = (place, place / "check_dataset")
    shards = [path for folder in folders for path in sorted(folder.glob("inspection-*")) if _NAME.fullmatch(path.name)]
    if not shards:
        fix = "Give Global.output of the jobs that ran with CheckDataset.shard=i/n."
        raise ShardError("There are no shards of a check.", where=str(place), fix=fix, code="shard-missing")
    with _readable(shards[0]) as reader:
        count = _record(reader)[0].count
    names = [path.name for path in shards]
    wanted = {path_of(place, Shard(number, count)).name for number in range(count)}
    lacking, more = sorted(wanted - set(names)), sorted(set(names) - wanted)
    if lacking or more or len(names) > count:
        what = f"{names[0]} is one of {count} shards"
        if lacking:
            what += f", of which {len(lacking)} are missing, such as {lacking[0]}."
        else:
            what += f", unlike {more[0]}." if more else ", and some are there twice."
        fix = "Run the missing ones, or move those of another job away."
        raise ShardError(what, where=str(place), fix=fix, code="shard-missing")
    known: dict[str, ImageInfo] = {}
    parts, digest = parts_of(files, count), _digest(files)
    for path in shards:
        with _readable(path) as reader:
            own = parts[_require_job(path, reader, count, len(files), digest).number]
            known |= dict(zip(own, _infos(reader, len(own)), strict=True))
    return {file: known[file] for file in files}


def _digest(files: Iterable[str]) -> str:
    digest = sha256()
    for file in files:
        digest.update(file.encode("utf-8", "surrogatepass") + b"\n")
    return digest.hexdigest()


def _record(reader: NpzReader) -> tuple[Shard, int, str]:
    """The shard, the number of all images, and the digest of their names."""
    [text] = reader.texts("record")
    told = json.loads(text)
    if told["version"] != VERSION:
        raise ValueError(f"it is of version {told['version']!r} of this check, and {VERSION} is needed")
    return Shard.parse("{number}/{count}".format(**told["shard"])), told["images"], told["digest"]


def _require_job(path: Path, reader: NpzReader, count: int, total: int, wanted: str) -> Shard:
    """The shard of a file that is one of `count`, of a data set of so many images with this digest."""
    shard, images, digest = _record(reader)
    if path.name != path_of(path.parent, shard).name or shard.count != count:
        raise ValueError(f"it is shard {shard}")
    if (images, digest) != (total, wanted):
        other = f"{images} images" if images != total else "images of other names, or in another order"
        raise ShardError(
            f"{path.name} is of {other}, and the data set has {total}.",
            where=str(path),
            fix="Move the shards of another data set, or of an earlier state of it, away.",
            code="shard-mixed",
        )
    return shard


def _infos(reader: NpzReader, count: int) -> Iterator[ImageInfo]:
    texts = reader.texts("info")
    if len(texts) != count:
        raise ValueError(f"it tells of {len(texts)} images, and {count} are its own")
    return map(known_info, texts)


@contextmanager
def _readable(path: Path) -> Iterator[NpzReader]:
    try:
        reader = NpzReader(path)
        try:
            yield reader
        finally:
            reader.close()
    except (FeatError, MemoryError):
        raise
    except OSError as error:
        fix = "Check the disk and the permissions."
        what = f"The shard cannot be read: {error.strerror}."
        raise ShardError(what, where=str(path), fix=fix, code="shard-unreadable") from error
    except Exception as error:  # of zipfile, NumPy and JSON, which have many for a damaged file
        raise ShardError(
            f"The shard cannot be used: {error}.",
            where=str(path),
            fix="Remove it, and run that shard again.",
            code="shard-unusable",
        ) from error
