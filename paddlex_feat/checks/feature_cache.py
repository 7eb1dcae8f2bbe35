"""Features of images by content and model, kept from one check to the next."""

from __future__ import annotations

import hashlib
import logging
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from paddlex_feat.checks.database import database
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.evaluation.embed import Extractor

log = logging.getLogger(__name__)
_DIGEST = 16  # bytes of a digest, with which a stored row begins


class CachedExtractor:
    """An extractor that computes no image twice; made by `cached`.

    Args:
        extract: pixels to features.
        connection: of the model's database.
    """

    def __init__(self, extract: Extractor, connection: sqlite3.Connection):
        self._extract, self._connection = extract, connection
        self.computed = 0

    @property
    def preprocess(self) -> Preprocess:
        """Pre-processing of the images, as for `extract`."""
        return self._extract.preprocess

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3], RGB, resized -> float32 [N, D], the features."""
        keys = [_digest(image.tobytes()) for image in images]
        known = self._known(keys)
        missing = [place for place, key in enumerate(keys) if key not in known]
        if missing:
            rows = self._extract(np.ascontiguousarray(images[missing]))
            self.computed += len(rows)
            fresh = {keys[place]: row for place, row in zip(missing, rows, strict=True)}
            known |= fresh
            self._store(fresh)
        return np.stack([known[key] for key in keys])

    def _known(self, keys: list[bytes]) -> dict[bytes, np.ndarray]:
        found = {}
        try:
            for key in keys:
                row = self._connection.execute("SELECT row FROM feature WHERE key = ?", (key,)).fetchone()
                if row and _digest(row[0][_DIGEST:]) == row[0][:_DIGEST]:  # else damaged, and computed anew
                    found[key] = np.frombuffer(row[0], np.float32, offset=_DIGEST)
        except (sqlite3.Error, ValueError, TypeError) as error:
            log.warning("Features of earlier checks cannot be read, and are not used: %s", error)
            return {}
        return found

    def _store(self, rows: dict[bytes, np.ndarray]) -> None:
        try:
            with self._connection:
                contents = ((key, row.astype(np.float32).tobytes()) for key, row in rows.items())
                values = [(key, _digest(content) + content) for key, content in contents]
                self._connection.executemany("INSERT OR REPLACE INTO feature VALUES (?, ?)", values)
        except sqlite3.Error as error:
            log.warning("Features cannot be stored for the next check: %s", error)


@contextmanager
def cached(extract: Extractor, model: str) -> Iterator[Extractor]:
    """An extractor whose results are kept in the cache folder; `extract` itself where that cannot be used.

    Args:
        extract: pixels to features.
        model: hash of all that decides its results.
    """
    with database(f"features_{model}.sqlite", "feature (key PRIMARY KEY, row)") as connection:
        yield extract if connection is None else CachedExtractor(extract, connection)


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=_DIGEST).digest()
