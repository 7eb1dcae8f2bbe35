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
from paddlex_feat.errors import ShardError
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.fileio.npz import NpzReader, NpzWriter

_NAME = re.compile(r"inspection-\d+-of-\d+\.npz")


def path_of(folder: Path, shard: Shard) -> Path:
    """The file of a shard."""
    return folder / f"inspection-{shard.name}.npz"


def part_of(files: Sequence[str], shard: Shard) -> list[str]:
    """The shard's own images: every n-th picture, with all its boxes, so that none is read twice."""
    pictures = list(dict.fromkeys(map(picture_of, files)))
    own = set(shard.part_of(pictures))
    return [file for file in files if picture_of(file) in own]


def inspect_shard(folder: Path, shard: Shard, files: Sequence[str], workers: int) -> tuple[dict[str, ImageInfo], bool]:
    """What is known of the shard's own images, and whether its file was there already.

    Args:
        folder: of the files of all shards.
        shard: which one.
        files: all images of the data set.
        workers: threads.

    Raises ShardError if the file is there, and is of other images; OutputError.
    """
    path, own = path_of(folder, shard), part_of(files, shard)
    if path.exists():
        with _readable(path) as reader:
            _require_job(path, reader, shard.count, files)
            return dict(zip(own, _infos(reader, len(own)), strict=True)), True
    found = inspect_all(own, workers, hashed=True)
    record = json.dumps({"version": VERSION, "shard": asdict(shard), "images": len(files), "digest": _digest(files)})
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
    known: dict[str, ImageInfo] = {}
    with _readable(shards[0]) as reader:
        count = _record(reader)[0].count
    missing = [number for number in range(count) if path_of(shards[0].parent, Shard(number, count)) not in shards]
    strange = [path.name for path in shards if not path.name.endswith(f"-of-{count:05d}.npz")]
    if missing or strange:
        what = f"{shards[0].name} is one of {count} shards"
        what += f"; {len(missing)} are missing, such as {missing[0]}/{count}." if missing else f", unlike {strange[0]}."
        fix = "Run the missing ones, or move those of another job away."
        raise ShardError(what, where=str(shards[0].parent), fix=fix, code="shard-missing")
    for path in shards:
        with _readable(path) as reader:
            shard = _require_job(path, reader, count, files)
            own = part_of(files, shard)
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


def _require_job(path: Path, reader: NpzReader, count: int, files: Sequence[str]) -> Shard:
    shard, images, digest = _record(reader)
    if path.name != path_of(path.parent, shard).name or shard.count != count:
        raise ValueError(f"it is shard {shard}")
    if (images, digest) != (len(files), _digest(files)):
        other = f"{images} images" if images != len(files) else "images of other names, or in another order"
        raise ShardError(
            f"{path.name} is of {other}, and the data set has {len(files)}.",
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
    except ShardError:
        raise
    except Exception as error:  # of zipfile, NumPy and JSON, which have many for a damaged file
        raise ShardError(
            f"The shard cannot be used: {error}.",
            where=str(path),
            fix="Remove it, and run that shard again.",
            code="shard-unusable",
        ) from error
