"""The SQLite file of a gallery: its tables, its transactions, and SQLite's errors in words of ours.

Tables: `meta` (JSON by name), `items` (all but the vectors), `vectors` and `thumbnails` (by the id of the item), and
`removed`, the ids that are gone. A file is untrusted: tables other than ours, triggers and views are refused before
anything is read.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

from paddlex_feat.errors import GalleryError
from paddlex_feat.search.problems import missing, rebuilt

APPLICATION_ID = 0x70786665  # "pxfe", in the header of the file
VERSION = 1
_PAGE_BYTES = 32768  # holds several vectors; with SQLite's own 4096 each of 2 KiB would take a page
_BUSY_SECONDS = 30
_SCHEMA = {
    "meta": "CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "items": "CREATE TABLE items (id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, label TEXT, "
    "path TEXT, box TEXT, data TEXT, state TEXT, added REAL NOT NULL, change INTEGER NOT NULL)",
    "vectors": "CREATE TABLE vectors (id INTEGER PRIMARY KEY, vector BLOB NOT NULL)",
    "thumbnails": "CREATE TABLE thumbnails (id INTEGER PRIMARY KEY, jpeg BLOB NOT NULL)",
    "removed": "CREATE TABLE removed (id INTEGER PRIMARY KEY, change INTEGER NOT NULL)",
    "items_change": "CREATE INDEX items_change ON items (change)",
    "items_label": "CREATE INDEX items_label ON items (label)",
    "removed_change": "CREATE INDEX removed_change ON removed (change)",
}

_Opened = TypeVar("_Opened", bound="Database")


def _number_of(path: Path) -> tuple[int, int] | None:
    """Device and number of a file, which another one at its place does not have; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


class Database:
    """An open gallery file. Used by one thread at a time.

    Args:
        path: of the file.
        meta: of a new gallery, which is made with it; None: the gallery must exist.

    Raises GalleryError if the file cannot be read or made, or is not a gallery.
    """

    def __init__(self, path: Path, meta: dict[str, Any] | None = None):
        self.path = path
        if meta is None and not path.is_file():
            raise missing(str(path))
        try:
            self._db = self._connected(meta is None)
        except sqlite3.Error as error:
            raise self._error(error) from error
        self._file: tuple[int, int] | None = None
        try:
            with self._explained():
                self._open(meta)
                self._file = _number_of(path)
                self.model: dict[str, Any] = self._meta_value("model")
                self.dimension = int(self.model["dimension"])
        except (KeyError, TypeError, ValueError):
            self._db.close()
            raise self._foreign("its meta table does not name the model") from None
        except BaseException:
            self._db.close()
            raise

    def _connected(self, exists: bool) -> sqlite3.Connection:
        """A connection; where neither file nor folder can be written, one that only reads."""
        address = f"{self.path.absolute().as_uri()}?mode={'rw' if exists else 'rwc'}"
        folder = self.path.absolute().parent
        if exists and not os.access(folder, os.W_OK) and not self.path.with_name(f"{self.path.name}-wal").exists():
            address = f"{self.path.absolute().as_uri()}?immutable=1"  # SQLite's own files beside it cannot be made
        return sqlite3.connect(address, timeout=_BUSY_SECONDS, isolation_level=None, check_same_thread=False, uri=True)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self: _Opened) -> _Opened:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def meta(self) -> dict[str, Any]:
        """All of the table `meta`."""
        with self._explained():
            rows = self._db.execute("SELECT name, value FROM meta").fetchall()
        return {str(name): self._decoded(value) for name, value in rows}

    def set_meta(self, name: str, value: Any) -> None:
        """Set a value of the table `meta`."""
        with self._change():
            self._set_meta(name, value)

    def changed(self, known: int) -> bool:
        """Whether there is a change after the one of this number."""
        with self._explained():
            return self._last_change() != known

    def last_change(self) -> int:
        """Number of the last change."""
        with self._explained():
            return self._last_change()

    def epoch(self) -> int:
        """How often the ids that are gone were forgotten: after that, a difference is not enough."""
        with self._explained():
            return self._meta_number("epoch")

    def _open(self, meta: dict[str, Any] | None) -> None:
        db = self._db
        with suppress(AttributeError):  # before Python 3.11
            db.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 2**26)
        db.execute("PRAGMA trusted_schema = OFF")
        db.execute("PRAGMA cell_size_check = ON")
        tables = dict(db.execute("SELECT name, sql FROM sqlite_master WHERE name NOT LIKE 'sqlite_%'"))
        if meta is not None and not tables:
            self._create(meta)
            return
        if not tables:
            raise self._foreign("it is empty, as that of a build that has just begun")
        identity = db.execute("PRAGMA application_id").fetchone()[0], db.execute("PRAGMA user_version").fetchone()[0]
        if identity[0] != APPLICATION_ID:
            raise self._foreign("it is another program's")
        if identity[1] != VERSION:
            raise self._foreign(f"its version is {identity[1]}, and this program reads version {VERSION}")
        if tables != _SCHEMA:
            raise self._foreign("its tables are not those of a gallery")
        db.execute("PRAGMA synchronous = FULL")

    def _create(self, meta: dict[str, Any]) -> None:
        db = self._db
        db.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        self._patiently("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("BEGIN IMMEDIATE")
        try:
            if not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:  # else another process was faster
                for statement in _SCHEMA.values():
                    db.execute(statement)
                for name, value in {"change": 0, "epoch": 0, **meta}.items():
                    self._set_meta(name, value)
                db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                db.execute(f"PRAGMA user_version = {VERSION}")
            db.execute("COMMIT")
        except BaseException:
            self._roll_back()
            raise

    def _patiently(self, statement: str) -> None:
        """Execute a statement for which SQLite itself does not wait where another process is at work."""
        deadline = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                self._db.execute(statement)
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)

    @contextmanager
    def _change(self) -> Iterator[int]:
        """A transaction that writes; gives its number. When the block has ended, the change is on the disk."""
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                change = self._last_change() + 1
                self._set_meta("change", change)
                yield change
                self._db.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """A transaction that sees one moment."""
        self._db.execute("BEGIN")
        try:
            yield
        finally:
            self._roll_back()

    def _roll_back(self) -> None:
        with suppress(sqlite3.Error):  # the error that led here is the one to tell
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _require_model(self) -> None:
        """Raise GalleryError if another process has exchanged the features for those of another model."""
        if self._meta_value("model") != self.model:
            raise rebuilt(str(self.path))

    def _last_change(self) -> int:
        return self._meta_number("change")

    def _meta_value(self, name: str) -> Any:
        row = self._db.execute("SELECT value FROM meta WHERE name = ?", (name,)).fetchone()
        return self._decoded(row[0]) if row else None

    def _meta_number(self, name: str) -> int:
        value = self._meta_value(name)
        if type(value) is not int:
            raise self._foreign(f"its {name} is not a number")
        return value

    def _set_meta(self, name: str, value: Any) -> None:
        self._db.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (name, json.dumps(value)))

    def _decoded(self, text: Any) -> Any:
        try:
            return json.loads(text)
        except (TypeError, ValueError, RecursionError):
            raise self._foreign("a value of it is not JSON") from None

    def _require_file(self) -> None:
        """Raise GalleryError if the file was removed, or another one lies in its place: changes would be lost."""
        if self._file is None or (found := _number_of(self.path)) == self._file:
            return
        raise rebuilt(str(self.path)) if found else missing(str(self.path))

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn SQLite's errors into ours."""
        self._require_file()
        try:
            yield
        except (sqlite3.Error, OverflowError, UnicodeDecodeError) as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> GalleryError:
        text = str(error)
        if isinstance(error, sqlite3.OperationalError) and "locked" in text:
            fix = f"Another process has been writing for {_BUSY_SECONDS} seconds: try again later."
        elif "full" in text or "disk I/O" in text or "readonly" in text or "unable to open" in text:
            fix = "Check that the folder exists and can be written, and that the disk has room; nothing was changed."
        else:
            fix = "If it is a gallery, restore it from a copy or build it again."
        return GalleryError(
            f"The gallery cannot be used ({text[:200]}).", where=str(self.path), fix=fix, code="gallery-file"
        )

    def _foreign(self, reason: str) -> GalleryError:
        return GalleryError(
            f"The file is not a gallery: {reason}.",
            where=str(self.path),
            fix="Give a file that Global.mode=index has made.",
            code="gallery-foreign",
        )
