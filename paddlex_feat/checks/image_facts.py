"""What an image file is: readable or not, how large, of what kind, and what it looks like.

Every file is decoded in full, in threads. What was found is remembered by path, size and time of
change, so that a second check of the same files reads none of them.
"""

from __future__ import annotations

import json
import logging
import os
import sqlite3
import stat
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from hashlib import sha256
from itertools import islice
from pathlib import Path

import cv2
import numpy as np

from paddlex_feat import MOST_PIXELS
from paddlex_feat.checks.damage import has_converted_line_ends, has_step, hole, tiff_error
from paddlex_feat.checks.image_headers import Header, jpeg_header, read_header
from paddlex_feat.checks.phash import levels, look_at, upright
from paddlex_feat.data.images.decode import MOST_WHOLE, decode_admitted, first_damage
from paddlex_feat.data.images.formats import ends_early, require_decodable
from paddlex_feat.data.images.jpeg import Layout
from paddlex_feat.errors import DownloadError, ImageError
from paddlex_feat.fileio.reading import open_flags
from paddlex_feat.hub.cache import cache_folder
from paddlex_feat.runtime.malloc import keep_freed_memory
from paddlex_feat.runtime.progress import bar

log = logging.getLogger(__name__)
_VERSION = 4  # of the facts in the cache
_CHUNK = 2048  # images after which what was found is remembered
_BATCH = 16  # images that a thread takes at once, for handing them over takes time too
_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # the blocks of a JPEG lie in the file's own rows


Stamp = tuple[bytes, int, str]  # path and size of a file; number and times of change, which a copy does not keep


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """One image file.

    Attributes:
        fault: code of why it cannot be used, "" if it can; message: the reason in words.
        width, height: in pixels, as stored.
        traits: of "animated", "multi-page", "cmyk", "16-bit", "alpha", "rotated" what applies.
        content: SHA-256 of the file as hex; "" where no other file has its size, so that it is unique.
        looks: 640-bit perceptual hash as hex, "" for an image without contrast.
        damage: how one sees that its data are damaged, though they decode; "" if they are sound.
        empty: "blank", "dark" or "bright" for an image that shows next to nothing, else "".
        levels: darkest and brightest level of 255 of such an image, and of one with 16 bits.
    """

    fault: str = ""
    message: str = ""
    width: int = 0
    height: int = 0
    traits: tuple[str, ...] = ()
    content: str = ""
    looks: str = ""
    damage: str = ""
    empty: str = ""
    levels: tuple[int, ...] = ()


_FIELDS = [field.name for field in fields(ImageFacts)]


def inspect(path: str, hashed: bool = True) -> ImageFacts:
    """Read and decode one file; its content is hashed if asked."""
    data = _read(path)
    if isinstance(data, ImageFacts):
        return data
    said: list[str] = []
    head = None
    try:
        layout = require_decodable(data, path)
        head = jpeg_header(layout) if layout else read_header(data)
        if head.width * head.height > MOST_PIXELS:
            raise ImageError("")
        image = decode_admitted(data, path, _AS_STORED if layout else cv2.IMREAD_COLOR, said)
    except ImageError as error:
        return _undecodable(data, head or read_header(data), error.what)
    height, width = (head.height, head.width) if head.width else image.shape[:2]
    if layout and ends_early(data):
        return ImageFacts("image-truncated", "The file ends early.", width, height, head.traits)
    looks = look_at(upright(image, head.orientation) if layout else image)
    dim = levels(image) if looks.empty or "16-bit" in head.traits else ()
    content = sha256(data).hexdigest() if hashed else ""
    damage = _damage(data, image, layout, said)
    return ImageFacts("", "", width, height, head.traits, content, looks.phash, damage, looks.empty, dim)


def _read(path: str) -> bytes | ImageFacts:
    """The content of an image file, or why it cannot be had."""
    try:
        handle = os.open(path, os.O_RDONLY | open_flags("O_NONBLOCK"))  # a pipe is not waited for
        try:
            status = os.fstat(handle)
            if stat.S_ISDIR(status.st_mode):
                return ImageFacts("image-is-folder", "The path is a folder, not an image.")
            if not stat.S_ISREG(status.st_mode):
                return ImageFacts("image-unreadable", "The path is a device or a pipe, not a file.")
            if status.st_size > MOST_WHOLE:
                message = f"{status.st_size} bytes are more than the {MOST_WHOLE} that are read."
                return ImageFacts("image-too-large", message)
            data = os.read(handle, status.st_size)
        finally:
            os.close(handle)
    except (FileNotFoundError, NotADirectoryError):
        return ImageFacts("image-missing", "The file does not exist.")
    except (OSError, ValueError) as error:
        return ImageFacts("image-unreadable", f"The file cannot be read ({getattr(error, 'strerror', error)}).")
    return data or ImageFacts("image-empty", "The file has no bytes.")


def _undecodable(data: bytes, head: Header, message: str) -> ImageFacts:
    """Why an image does not decode."""
    code = "image-undecodable"
    if head.width * head.height > MOST_PIXELS:
        code = "image-too-large"
        message = f"{head.width} x {head.height} pixels are more than the {MOST_PIXELS} that are decoded."
    elif head.width and ends_early(data):
        code, message = "image-truncated", "The file ends early."
    return ImageFacts(code, message, head.width, head.height, head.traits)


def _damage(data: bytes, image: np.ndarray, layout: Layout | None, said: list[str]) -> str:
    """How one sees that parts of a decoded image are wrong, as a clause; "" for a sound one.

    said: the decoder's warnings.
    """
    warning = first_damage("\n".join(said))
    if warning:
        return f"the decoder says: {warning}"
    if layout:
        at = hole(data, layout)
        if at:
            return f"a run of zeros at byte {at}, where an encoder writes none"
        return "brightness jumps within a row of blocks, as after lost bytes" if has_step(image, layout.mcu) else ""
    if has_converted_line_ends(data):
        return "its line ends were converted, as in a transfer as text"
    error = tiff_error(data) if data[:2] in (b"II", b"MM") else ""
    return f"its data cannot be decompressed: {error}" if error else ""


def inspect_all(paths: list[str], workers: int) -> dict[str, ImageFacts]:
    """The facts of every path, from the cache where the file has not changed since."""
    stamps = {path: _stamp(path) for path in paths}
    count = Counter(stamp[1] for stamp in stamps.values() if stamp)
    shared = {path for path, stamp in stamps.items() if stamp and count[stamp[1]] > 1}
    with _cache() as cache:
        known = {p: f for p, f in _recall(cache, stamps).items() if f.content or f.fault or p not in shared}
        unknown = [(path, path in shared) for path in paths if path not in known]
        fresh: dict[str, ImageFacts] = {}
        for chunk in _inspect_in_threads(unknown, workers):
            fresh |= chunk
            # What may be readable the next time is not remembered.
            _remember(cache, {p: f for p, f in chunk.items() if stamps[p] and f.fault != "image-unreadable"}, stamps)
    return {path: known[path] if path in known else fresh[path] for path in paths}


def _inspect_in_threads(jobs: list[tuple[str, bool]], workers: int) -> Iterator[dict[str, ImageFacts]]:
    cv2.setNumThreads(0)  # one image a thread is the parallelism
    keep_freed_memory()
    stream = iter(jobs)
    with ThreadPoolExecutor(workers) as pool, bar(len(jobs), "decoding", "images") as progress:
        while chunk := list(islice(stream, _CHUNK)):
            found: dict[str, ImageFacts] = {}
            batches = [chunk[i : i + _BATCH] for i in range(0, len(chunk), _BATCH)]
            for batch, facts in zip(batches, pool.map(_inspect_batch, batches), strict=True):
                progress.update(len(batch))
                found |= {path: each for (path, _), each in zip(batch, facts, strict=True)}
            yield found


def _inspect_batch(jobs: list[tuple[str, bool]]) -> list[ImageFacts]:
    return [inspect(path, hashed) for path, hashed in jobs]


def _stamp(path: str) -> Stamp | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    # The time of its content alone can be set, as tar and rsync do; that of its entry cannot.
    changed = f"{status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
    return os.fsencode(os.path.abspath(path)), status.st_size, changed


@contextmanager
def _cache() -> Iterator[sqlite3.Connection | None]:
    """The database of facts; None, with a notice, where it cannot be used."""
    try:
        path = cache_folder() / "check_dataset" / f"images_{_VERSION}.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _open(path)
    except (OSError, sqlite3.Error, DownloadError) as error:  # the last: there is no home folder
        log.warning("Without a memory of earlier checks: %s", error.what if isinstance(error, DownloadError) else error)
        yield None
        return
    with closing(connection):
        yield connection


def _open(path: Path) -> sqlite3.Connection:
    """The database; a file that is none, which only a crash of the system leaves, is begun anew."""
    table = "CREATE TABLE IF NOT EXISTS image (path PRIMARY KEY, size, changed, facts) WITHOUT ROWID"
    connection = sqlite3.connect(path)
    try:
        connection.execute(table)
    except sqlite3.OperationalError:  # locked, full, read-only
        raise
    except sqlite3.DatabaseError:
        connection.close()
        path.unlink()
        connection = sqlite3.connect(path)
        connection.execute(table)
    return connection


def _recall(cache: sqlite3.Connection | None, stamps: dict[str, Stamp | None]) -> dict[str, ImageFacts]:
    known: dict[str, ImageFacts] = {}
    if cache is None:
        return known
    try:
        for path, stamp in stamps.items():
            row = (
                stamp
                and cache.execute(
                    "SELECT facts FROM image WHERE path = ? AND size = ? AND changed = ?", stamp
                ).fetchone()
            )
            if row:
                values = json.loads(row[0])
                known[path] = ImageFacts(
                    **{**values, "traits": tuple(values["traits"]), "levels": tuple(values["levels"])}
                )
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        log.warning("The memory of earlier checks is not readable, and not used: %s", error)
        return {}
    return known


def _remember(cache: sqlite3.Connection | None, fresh: dict[str, ImageFacts], stamps: dict[str, Stamp | None]) -> None:
    if cache is None or not fresh:
        return
    rows = [(*(stamps[path] or ()), json.dumps({n: getattr(f, n) for n in _FIELDS})) for path, f in fresh.items()]
    try:
        with cache:
            cache.executemany("INSERT OR REPLACE INTO image VALUES (?, ?, ?, ?)", rows)
    except (sqlite3.Error, UnicodeError) as error:
        log.warning("What was found is not remembered for the next check: %s", error)
