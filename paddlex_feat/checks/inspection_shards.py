"""What jobs that do not know of each other have found in their part of the images, as files that one check reads."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from paddlex_feat.checks.image_info import ImageInfo
from paddlex_feat.checks.inspection import VERSION, inspect_all, known_info
from paddlex_feat.data.images.source import picture_of
from paddlex_feat.data.shard import Shard
from paddlex_feat.data.shard_files import RECORD, ShardedJob, digest_of, readable
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.fileio.npz import NpzReader, NpzWriter

STEM = "inspection"


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
    path, own, job = folder / shard.file(STEM), parts_of(files, shard.count)[shard.number], _job(files)
    if path.exists():
        with readable(path) as reader:
            job.require(path, reader, shard.count)
            return dict(zip(own, _infos(reader, len(own)), strict=True)), True
    found = inspect_all(own, workers, hashed=True)
    with atomic_path(path) as temporary, NpzWriter(temporary) as writer:
        writer.write_texts("info", [json.dumps(asdict(info)) for info in found.values()])
        writer.write_texts(RECORD, [job.record(shard)])
    return found, False


def inspected(place: Path, files: Sequence[str]) -> dict[str, ImageInfo]:
    """What all shards have found, for all images of a data set.

    Args:
        place: the folder of the shards' files, or the folder Global.output of their jobs.
        files: all images.

    Raises ShardError for shards that are missing, repeated, damaged, or of other images.
    """
    job = _job(files)
    shards = job.files(place, "check_dataset", "CheckDataset.shard")
    known: dict[str, ImageInfo] = {}
    parts = parts_of(files, len(shards))
    for path in shards:
        with readable(path) as reader:
            own = parts[job.require(path, reader, len(shards)).number]
            known |= dict(zip(own, _infos(reader, len(own)), strict=True))
    return {file: known[file] for file in files}


def _job(files: Sequence[str]) -> ShardedJob:
    return ShardedJob(STEM, VERSION, len(files), digest_of(files))


def _infos(reader: NpzReader, count: int) -> Iterator[ImageInfo]:
    texts = reader.texts("info")
    if len(texts) != count:
        raise ValueError(f"it tells of {len(texts)} images, and {count} are its own")
    return map(known_info, texts)
