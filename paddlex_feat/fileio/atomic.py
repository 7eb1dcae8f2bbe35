"""Write whole files or nothing, and keep the former file until the new one is complete."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paddlex_feat.errors import as_output_error
from paddlex_feat.fileio.reading import MAX_RESULT_BYTES, read_small
from paddlex_feat.fileio.temporary import temporary_file

log = logging.getLogger(__name__)
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EACCES}  # some network file systems


def require_writable(folder: Path) -> None:
    """Create the folder if missing. Raises OutputError, before hours of work, if nothing can be written there."""
    with as_output_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass


def require_disk_space(folder: Path, size: int) -> None:
    """Raise OutputError if no file of `size` bytes fits: Paddle and OpenVINO write half of one without an error.

    Nothing is checked where the system cannot reserve space for a file.
    """
    with as_output_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if hasattr(os, "posix_fallocate"):
            with tempfile.TemporaryFile(dir=folder) as stream:
                os.posix_fallocate(stream.fileno(), 0, size)


@contextmanager
def atomic_path(path: Path, fsync_dir: bool = True) -> Iterator[Path]:
    """Yield a temporary name in the same folder; it replaces `path` when the block succeeds.

    fsync_dir: wait until the name is on the disk too; without it the file may be gone after a power cut.
    """
    with as_output_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary_file(path.parent, path.suffix) as temporary:
            yield temporary
            sync_file(temporary)
            temporary.replace(path)
        if fsync_dir:
            sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Wait until a file's content is on the disk. Raises OSError."""
    handle = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)  # Windows flushes what can be written
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk, where its file system can. Raises OSError."""
    try:
        sync_file(folder)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def write_bytes(path: Path, data: bytes, fsync_dir: bool = True) -> None:
    """Write a whole file or nothing; `fsync_dir` as for `atomic_path`."""
    with atomic_path(path, fsync_dir) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 file or nothing."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: Any, indent: int = 2, ensure_ascii: bool = False, fsync_dir: bool = True) -> None:
    """Write JSON; NaN is refused, because JSON has none. `fsync_dir` as for `atomic_path`."""
    text = json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, allow_nan=False) + "\n"
    # A file name that is not UTF-8 holds lone surrogates, which \\udcff writes in JSON's own way.
    write_bytes(path, text.encode("utf-8", errors="backslashreplace"), fsync_dir)


def read_result(path: Path) -> dict[str, Any]:
    """A result file that this program wrote; empty where there is none, or something else."""
    try:
        content = json.loads(read_small(path, MAX_RESULT_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def link_or_copy(source: Path, target: Path) -> None:
    """A second name for an immutable file; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copy2(source, target)
