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
from paddlex_feat.errors import DownloadError, ImageError
from paddlex_feat.hub import cache_folder
from paddlex_feat.pipeline.decode import MOST_WHOLE, decode_bgr
from paddlex_feat.progress import bar

log = logging.getLogger(__name__)

warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # damaged files are reported as findings
Image.MAX_IMAGE_PIXELS = None  # headers only are read by Pillow; MOST_PIXELS is the limit here
_VERSION = 3  # of the facts in the cache
_CHUNK = 2048  # images handed to the threads at a time
_FLAT = 8  # grey levels; an image of less contrast looks like any other
_STEP = 2  # grey levels; a smaller difference between cells may be noise
_PNM_GREATEST = re.compile(rb"P[2356]\s+(?:#[^\n]*\n\s*)*\d+\s+\d+\s+(\d+)")
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
    """

    fault: str = ""
    message: str = ""
    width: int = 0
    height: int = 0
    traits: tuple[str, ...] = ()
    content: str = ""
    looks: str = ""


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
    width, height, traits = _header(data)
    if width * height > MOST_PIXELS:
        message = f"{width} x {height} pixels are more than the {MOST_PIXELS} that are decoded."
        return ImageFacts("image-too-large", message, width, height)
    try:
        image = decode_bgr(data, path)
    except ImageError as error:
        cut = width and _ends_early(data)
        code, message = ("image-truncated", "The file ends early.") if cut else ("image-undecodable", error.what)
        return ImageFacts(code, message, width, height, traits)
    if not width:
        height, width = image.shape[:2]
    elif _ends_early(data):
        return ImageFacts("image-truncated", "The file ends early.", width, height, traits)
    return ImageFacts("", "", width, height, traits, sha256(data).hexdigest() if hashed else "", perceptual_hash(image))


def _header(data: bytes) -> tuple[int, int, tuple[str, ...]]:
    """Width, height and traits by the file's header; zeros where Pillow does not know the format."""
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
            if tags.get(0x0112, 1) not in (0, 1):  # the tag Orientation
                traits.append("rotated")
            return header.width, header.height, tuple(traits)
    except Exception:  # noqa: BLE001 - damaged headers raise nearly anything; the decoder has the last word
        return 0, 0, ()


def _deep(header: Image.Image, data: bytes) -> bool:
    """16 bits a channel, where Pillow's mode does not tell."""
    if header.format == "PNG":
        return data[_PNG_BIT_DEPTH] == 16
    if header.format == "TIFF":
        depth = getattr(header, "tag_v2", {}).get(258, 8)  # the tag BitsPerSample
        return max(depth if isinstance(depth, tuple) else (depth,)) > 8
    greatest = _PNM_GREATEST.match(data[:200]) if header.format == "PPM" else None
    return bool(greatest and int(greatest[1]) > 255)


def _ends_early(data: bytes) -> bool:
    """Is the file cut off? Some decoders fill what is missing with grey and say nothing."""
    whole = (b"\xff\xd9", b"IEND\xaeB`\x82")  # the ends of a JPEG and of a PNG
    if data.endswith(whole) or data[:2] not in (b"\xff\xd8", b"\x89P"):
        return False
    body = data.rstrip(b"\0")
    if body.endswith(whole) or len(body) < len(data):  # padded after its end, or in place of its rest
        return not body.endswith(whole)
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
    except Exception:  # noqa: BLE001 - whatever it is, the file does not hold the whole image
        return True
    return False


def perceptual_hash(image: np.ndarray) -> str:
    """640 bits, as hex, that small changes of size, light and compression leave alone; "" for flat images.

    Where do neighbouring cells of a grid of mean green grow brighter, along rows and along columns (a
    difference hash both ways)? 128 bits of a 9 x 9 grid, then 512 bits of a 17 x 17 grid.

    image: uint8 [H, W, 3].
    """
    step_y, step_x = max(1, image.shape[0] // 64), max(1, image.shape[1] // 64)
    grey = np.ascontiguousarray(image[::step_y, ::step_x, 1])  # green is most of what the eye sees as brightness
    bits = []
    for side in (8, 16):
        grid = cv2.resize(grey, (side + 1, side + 1), interpolation=cv2.INTER_AREA).astype(np.int16)
        if side == 8 and grid.max() - grid.min() < _FLAT:
            return ""
        bits.append((grid[:side, 1:] - grid[:side, :-1] > _STEP).ravel())
        bits.append((grid[1:, :side] - grid[:-1, :side] > _STEP).ravel())
    return np.packbits(np.concatenate(bits)).tobytes().hex()


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
                known[path] = ImageFacts(**{**values, "traits": tuple(values["traits"])})
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
