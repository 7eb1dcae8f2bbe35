"""Databases in the cache folder, of what earlier checks have found."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from paddlex_feat.errors import FeatError
from paddlex_feat.hub.cache import cache_folder

log = logging.getLogger(__name__)


@contextmanager
def database(name: str, table: str) -> Iterator[sqlite3.Connection | None]:
    """The database `name` of the cache; None, with a warning, where it cannot be used.

    Args:
        name: of the file.
        table: name and columns of its table, such as "image (path PRIMARY KEY, info)".
    """
    try:
        path = cache_folder() / "check_dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = _open(path, table)
    except (OSError, sqlite3.Error, FeatError) as error:  # FeatError: no home folder
        reason = error.what if isinstance(error, FeatError) else error
        log.warning("Results of earlier checks are not used: %s", reason)
        yield None
        return
    with closing(connection):
        yield connection


def _open(path: Path, table: str) -> sqlite3.Connection:
    """Open the database. A damaged file, which only a crash of the system leaves, is replaced."""
    statement = f"CREATE TABLE IF NOT EXISTS {table} WITHOUT ROWID"
    connection = sqlite3.connect(path, check_same_thread=False)
    try:
        connection.execute(statement)
    except sqlite3.OperationalError:  # locked, full, read-only
        raise
    except sqlite3.DatabaseError:
        connection.close()
        path.unlink()
        connection = sqlite3.connect(path, check_same_thread=False)
        connection.execute(statement)
    return connection
