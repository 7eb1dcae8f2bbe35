"""Files that are made once from a large file of a data set and kept in the cache folder, as indexes of shards are.

Their names follow from the path, size and times of change of what they were made from, so a changed file has others;
the former ones are then removed. Nothing in them is believed that its own digest does not confirm.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from contextlib import ExitStack, suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from paddlex_feat.errors import FeatError
from paddlex_feat.fileio.atomic import write_bytes
from paddlex_feat.fileio.cache import cache_to_write, download_lock
from paddlex_feat.fileio.reading import read_small

log = logging.getLogger(__name__)
VERSION = 1  # of all that is stored
MAX_INDEX_BYTES = 2**30
Columns = dict[str, list[Any]]


class Place:
    """Where what is made from a file is kept.

    Args:
        source: the file. Raises OSError if there is none.
        kind: of what is made, a word.

    Attributes:
        folder: of all that is made from a file of this path.
        name: for the present content of the file; to be followed by a suffix.
        size: of the file, in bytes.
    """

    def __init__(self, source: Path, kind: str):
        status = os.stat(source)
        path = os.fsencode(os.path.abspath(source))
        # The time of its content alone can be set, as tar and rsync do; that of its entry cannot.
        changed = f"{VERSION} {status.st_size} {status.st_ino} {status.st_mtime_ns} {status.st_ctime_ns}"
        self.folder = cache_to_write() / "datasets" / kind / sha256(path).hexdigest()[:32]
        self.name = sha256(path + b"\0" + changed.encode()).hexdigest()[:32]
        self.size = status.st_size

    @property
    def index(self) -> Path:
        """The file of the index."""
        return self.folder / f"{self.name}.json"

    def remove_former(self) -> None:
        """Remove what was made from the file's earlier contents."""
        with suppress(OSError):
            for path in self.folder.iterdir():
                if path.suffix in (".json", ".bytes") and path.stem != self.name:
                    path.unlink()


def stored(place: Place, make: Callable[[], Columns], valid: Callable[[Columns], bool]) -> Columns:
    """The index of a file: the stored one if it is whole and valid, else a new one, which is stored.

    Another process that makes the same one is waited for. An index that cannot be stored is used all the same.

    Args:
        place: of the index.
        make: makes the index, columns of JSON's values.
        valid: whether columns are such an index.

    Raises what `make` raises.
    """
    known = _load(place.index)
    if known is not None and valid(known):
        return known
    with ExitStack() as stack:
        with suppress(OSError):  # a cache that cannot be written
            stack.enter_context(download_lock(place.folder, "reads a data set into"))
        known = _load(place.index)
        if known is None or not valid(known):
            known = make()
            _store(place, known)
    return known


def _load(path: Path) -> Columns | None:
    try:
        digest, _, body = read_small(path, MAX_INDEX_BYTES).partition(b"\n")
        value = json.loads(body) if digest.decode() == sha256(body).hexdigest() else None
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) and all(isinstance(v, list) for v in value.values()) else None


def _store(place: Place, columns: Columns) -> None:
    # JSON of ASCII alone: names that are not UTF-8 hold lone surrogates, which it can write.
    body = json.dumps(columns, separators=(",", ":")).encode("ascii")
    try:
        write_bytes(place.index, sha256(body).hexdigest().encode() + b"\n" + body, fsync_dir=False)
        place.remove_former()
    except (OSError, FeatError) as error:
        log.warning("The index of a data set's file cannot be stored, and is made again next time: %s", error)
