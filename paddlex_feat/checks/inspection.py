"""Inspect many images, in threads.

Results are stored by path, size and time of change, so that a second check of the same files reads none of them.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import fields
from itertools import islice

from paddlex_feat.checks import image_info
from paddlex_feat.checks.database import database
from paddlex_feat.checks.image_info import ImageInfo
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.source import ImageSource, box_of, file_of, picture_of
from paddlex_feat.runtime.malloc import keep_freed_memory
from paddlex_feat.runtime.progress import bar

log = logging.getLogger(__name__)
VERSION = 8  # of the stored results
_CHUNK = 2048  # images after which results are stored
_BATCH = 16  # images that a thread takes at once, because handing them over takes time too
_FIELDS = [field.name for field in fields(ImageInfo)]
Stamp = tuple[bytes, int, str]  # path and size of an image; number and times of change, which a copy does not keep
Job = tuple[list[str], bool]  # a picture or boxes of it, and whether its content is hashed


def inspect_all(paths: list[str], workers: int, hashed: bool = False) -> dict[str, ImageInfo]:
    """Inspect images, in threads; results of unchanged files come from the cache. A picture is read once for its boxes.

    Args:
        paths: of the images.
        workers: number of threads.
        hashed: compute the SHA-256 of every picture; else of those that have the size of another one.
    """
    stamps = _stamps(paths)
    count = Counter(stamp[1] for path, stamp in stamps.items() if stamp and box_of(path) is None)
    shared = {
        path for path, stamp in stamps.items() if stamp and box_of(path) is None and (hashed or count[stamp[1]] > 1)
    }
    with database(f"images_{VERSION}.sqlite", "image (path PRIMARY KEY, size, changed, info)") as cache:
        known = {p: f for p, f in _load(cache, stamps).items() if f.sha256 or f.error or p not in shared}
        unknown = [path for path in paths if path not in known]
        fresh: dict[str, ImageInfo] = {}
        for chunk in _inspect_in_threads(_jobs(unknown, shared), len(unknown), workers):
            fresh |= chunk
            # An unreadable file may be readable the next time.
            _store(cache, {p: f for p, f in chunk.items() if stamps[p] and f.error != "image-unreadable"}, stamps)
    return {path: known[path] if path in known else fresh[path] for path in paths}


def _jobs(paths: list[str], hashed: set[str]) -> list[Job]:
    """A job for each picture, in the order of the first image of each."""
    pictures: dict[object, list[str]] = {}
    for path in paths:
        pictures.setdefault(picture_of(path), []).append(path)
    return [(group, any(path in hashed for path in group)) for group in pictures.values()]


def _inspect_in_threads(jobs: list[Job], total: int, workers: int) -> Iterator[dict[str, ImageInfo]]:
    """Results of the jobs, some at a time; `total` images."""
    keep_freed_memory()
    stream = iter(jobs)
    with (
        _without_opencv_threads(),
        ThreadPoolExecutor(workers) as pool,
        bar(total, "decoding", "images") as progress,
    ):
        while chunk := list(islice(stream, _CHUNK)):
            found: dict[str, ImageInfo] = {}
            batches = [chunk[i : i + _BATCH] for i in range(0, len(chunk), _BATCH)]
            for batch, infos in zip(batches, pool.map(_inspect_batch, batches), strict=True):
                images = [path for group, _ in batch for path in group]
                progress.update(len(images))
                found |= dict(zip(images, infos, strict=True))
            yield found


@contextmanager
def _without_opencv_threads() -> Iterator[None]:
    """Switch off OpenCV's own threads: one image a thread is the parallelism."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


def _inspect_batch(jobs: list[Job]) -> list[ImageInfo]:
    infos: list[ImageInfo] = []
    for paths, hashed in jobs:
        if len(paths) == 1:
            infos.append(image_info.inspect(paths[0], hashed))
        else:
            infos += image_info.inspect_together(paths, hashed)
    return infos


def _stamps(paths: list[str]) -> dict[str, Stamp | None]:
    """The stamp of each image; None for one that does not exist."""
    files: dict[str, Stamp | None] = {}
    stamps: dict[str, Stamp | None] = {}
    for path in paths:
        file = file_of(path)
        if file not in files:
            files[file] = _stamp(file)
        stamp = files[file]
        stamps[path] = _stamp_of_part(path, stamp) if stamp and isinstance(path, ImageSource) else stamp
    return stamps


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    # The time of its content alone can be set, as tar and rsync do; that of its entry cannot.
    changed = f"{status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
    return os.fsencode(os.path.abspath(path)), status.st_size, changed


def _stamp_of_part(source: ImageSource, stamp: Stamp) -> Stamp:
    """The stamp of an image that is not a file of its own, by that of its file."""
    file, size, changed = stamp
    box = tuple(source.box) if source.box else None  # in full: its text is rounded
    part = f"\0{source.start} {source.length} {box}"
    return file + part.encode(), size - source.start if source.length is None else source.length, changed


def _load(cache: sqlite3.Connection | None, stamps: dict[str, Stamp | None]) -> dict[str, ImageInfo]:
    known: dict[str, ImageInfo] = {}
    if cache is None:
        return known
    try:
        for path, stamp in stamps.items():
            row = (
                stamp
                and cache.execute(
                    "SELECT info FROM image WHERE path = ? AND size = ? AND changed = ?", stamp
                ).fetchone()
            )
            if row:
                known[path] = known_info(row[0])
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        log.warning("Results of earlier checks cannot be read, and are not used: %s", error)
        return {}
    return known


def known_info(text: str) -> ImageInfo:
    """What was stored as JSON. Raises ValueError, TypeError or KeyError for other texts."""
    values = json.loads(text)
    tuples = {name: tuple(values[name]) for name in ("properties", "levels", "measures", "picture")}
    return ImageInfo(**{**values, **tuples})


def _store(cache: sqlite3.Connection | None, fresh: dict[str, ImageInfo], stamps: dict[str, Stamp | None]) -> None:
    if cache is None or not fresh:
        return
    rows = [(*(stamps[path] or ()), json.dumps({n: getattr(f, n) for n in _FIELDS})) for path, f in fresh.items()]
    try:
        with cache:
            cache.executemany("INSERT OR REPLACE INTO image VALUES (?, ?, ?, ?)", rows)
    except (sqlite3.Error, UnicodeError) as error:
        log.warning("Results cannot be stored for the next check: %s", error)
