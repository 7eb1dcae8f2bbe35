"""What an image file is: readable or not, how large, of what kind, and what it looks like.

Every file is decoded in full, in threads. What was found is remembered by path, size and time of
change, so that a second check of the same files reads none of them.
"""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sqlite3
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from paddlex_feat import MOST_PIXELS
from paddlex_feat.allocator import keep_freed_memory
from paddlex_feat.dataset.damage import has_step, hole, tiff_error
from paddlex_feat.dataset.looks import emptiness, levels, perceptual_hash, upright
from paddlex_feat.errors import DownloadError, ImageError
from paddlex_feat.hub import cache_folder
from paddlex_feat.pipeline.decode import MOST_WHOLE, decode_with, first_damage
from paddlex_feat.pipeline.jpeg import read_layout
from paddlex_feat.progress import bar

log = logging.getLogger(__name__)

warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # damaged files are reported as findings
Image.MAX_IMAGE_PIXELS = None  # headers only are read by Pillow; MOST_PIXELS is the limit here
_VERSION = 4  # of the facts in the cache
_CHUNK = 2048  # images handed to the threads at a time
_PNM_GREATEST = re.compile(rb"P[2356]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s+(\d+)")
_AS_STORED = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION  # the blocks of a JPEG lie in the file's own rows
_PNG_BIT_DEPTH = 24  # offset of that byte in a PNG file


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


def inspect(path: str, hashed: bool = True) -> ImageFacts:
    """Read and decode one file; its content is hashed if asked."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            return ImageFacts("image-is-folder", "The path is a folder, not an image.")
        if not stat.S_ISREG(status.st_mode):
            return ImageFacts("image-unreadable", "The path is a device or a pipe, not a file.")
        if status.st_size > MOST_WHOLE:
            return ImageFacts("image-too-large", f"{status.st_size} bytes are more than the {MOST_WHOLE} that are read.")
        data = Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return ImageFacts("image-missing", "The file does not exist.")
    except (OSError, ValueError) as error:
        return ImageFacts("image-unreadable", f"The file cannot be read ({getattr(error, 'strerror', error)}).")
    if not data:
        return ImageFacts("image-empty", "The file has no bytes.")
    width, height, traits, orientation = _header(data)
    if width * height > MOST_PIXELS:
        message = f"{width} x {height} pixels are more than the {MOST_PIXELS} that are decoded."
        return ImageFacts("image-too-large", message, width, height)
    is_jpeg, said = data.startswith(b"\xff\xd8"), list[str]()
    try:
        image = decode_with(data, path, _AS_STORED if is_jpeg else cv2.IMREAD_COLOR, said)
    except ImageError as error:
        cut = width and _ends_early(data)
        code, message = ("image-truncated", "The file ends early.") if cut else ("image-undecodable", error.what)
        return ImageFacts(code, message, width, height, traits)
    if width and _ends_early(data):
        return ImageFacts("image-truncated", "The file ends early.", width, height, traits)
    height, width = (height, width) if width else image.shape[:2]
    damaged = _damage(data, image, said)
    seen = upright(image, orientation) if is_jpeg else image
    content = sha256(data).hexdigest() if hashed else ""
    return ImageFacts("", "", width, height, traits, content, perceptual_hash(seen), damaged, *_shown(image, traits))


def _damage(data: bytes, image: np.ndarray, said: list[str]) -> str:
    """How one sees that parts of a decoded image are wrong, as a clause; "" for a sound one.

    said: the decoder's warnings.
    """
    warning = first_damage("\n".join(said))
    if warning:
        return f"the decoder says: {warning}"
    if data.startswith(b"\xff\xd8"):
        layout = read_layout(data, whole=False)
        at = hole(data, layout)
        if at:
            return f"zeros in the place of its data, from byte {at} on"
        return "brightness jumps within a row of blocks, as behind lost bytes" if has_step(image, layout.mcu) else ""
    error = tiff_error(data) if data[:2] in (b"II", b"MM") else ""
    return f"its data cannot be decompressed: {error}" if error else ""


def _shown(image: np.ndarray, traits: tuple[str, ...]) -> tuple[str, tuple[int, ...]]:
    """`ImageFacts.empty` and `levels`."""
    kind, low, high = emptiness(image)
    if "16-bit" in traits:
        return kind, levels(image)
    return (kind, (low, high)) if kind else ("", ())


def _ends_early(data: bytes) -> bool:
    """Whether the end of a JPEG, PNG or WebP image is missing. What stands behind the end does not matter."""
    if data.startswith(b"\xff\xd8"):
        return not data.endswith(b"\xff\xd9") and not read_layout(data).end
    if data.startswith(b"\x89PNG"):
        return b"IEND\xaeB`\x82" not in data
    return data.startswith(b"RIFF") and len(data) < 8 + int.from_bytes(data[4:8], "little")


def _header(data: bytes) -> tuple[int, int, tuple[str, ...], int]:
    """Width, height, traits and EXIF orientation by the file's header; zeros where Pillow does not know the format."""
    try:
        with Image.open(io.BytesIO(data)) as header:
            traits = []
            if getattr(header, "is_animated", False) and header.format != "MPO":  # a phone's photograph and preview
                traits.append("multi-page" if header.format == "TIFF" else "animated")
            if header.mode == "CMYK":
                traits.append("cmyk")
            if header.mode.startswith("I") or _deep(header, data):
                traits.append("16-bit")
            if header.mode in ("RGBA", "LA", "PA") or "transparency" in header.info:
                traits.append("alpha")
            # Pillow decodes a whole PNG in search of EXIF data that may follow the pixels.
            tags = header.getexif() if header.format != "PNG" or "exif" in header.info else {}
            orientation = tags.get(0x0112, 1)  # any number, or a text
            orientation = orientation if orientation in range(1, 9) else 1
            if orientation != 1:
                traits.append("rotated")
            return header.width, header.height, tuple(traits), orientation
    except Exception:  # noqa: BLE001 - damaged headers raise nearly anything; the decoder has the last word
        return 0, 0, (), 1


def _deep(header: Image.Image, data: bytes) -> bool:
    """16 bits a channel, where Pillow's mode does not tell."""
    if header.format == "PNG":
        return data[_PNG_BIT_DEPTH] == 16
    if header.format == "TIFF":
        depth = getattr(header, "tag_v2", {}).get(258, 8)  # the tag BitsPerSample
        return max(depth if isinstance(depth, tuple) else (depth,)) > 8
    greatest = _PNM_GREATEST.match(data[:200]) if header.format == "PPM" else None
    return bool(greatest and int(greatest[1]) > 255)


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
    cv2.setNumThreads(1)  # one image a thread is the parallelism
    keep_freed_memory()
    stream = iter(jobs)
    with ThreadPoolExecutor(workers) as pool, bar(len(jobs), "decoding", "images") as progress:
        while chunk := list(islice(stream, _CHUNK)):
            found = {}
            for (path, _), facts in zip(chunk, pool.map(lambda job: inspect(*job), chunk), strict=True):
                progress.update()
                found[path] = facts
            yield found


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
        log.warning("Without a memory of earlier checks: %s", error)
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


def _recall(
    cache: sqlite3.Connection | None, stamps: dict[str, Stamp | None]
) -> dict[str, ImageFacts]:
    known: dict[str, ImageFacts] = {}
    if cache is None:
        return known
    try:
        for path, stamp in stamps.items():
            row = stamp and cache.execute(
                "SELECT facts FROM image WHERE path = ? AND size = ? AND changed = ?", stamp
            ).fetchone()
            if row:
                values = json.loads(row[0])
                known[path] = ImageFacts(**{**values, "traits": tuple(values["traits"]), "levels": tuple(values["levels"])})
    except (sqlite3.Error, ValueError, TypeError, KeyError) as error:
        log.warning("The memory of earlier checks is not readable, and not used: %s", error)
        return {}
    return known


def _remember(
    cache: sqlite3.Connection | None, fresh: dict[str, ImageFacts], stamps: dict[str, Stamp | None]
) -> None:
    if cache is None or not fresh:
        return
    rows = [(*(stamps[path] or ()), json.dumps(asdict(facts))) for path, facts in fresh.items()]
    try:
        with cache:
            cache.executemany("INSERT OR REPLACE INTO image VALUES (?, ?, ?, ?)", rows)
    except (sqlite3.Error, UnicodeError) as error:
        log.warning("What was found is not remembered for the next check: %s", error)
