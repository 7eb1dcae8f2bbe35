"""The file system: whole files, locks, temporary files, safe reading.

atomic, atomic_folder  write a whole file or folder or nothing: `atomic_path`, `write_json`
backups                keep a former file as `.bak`: `backup`, `write_with_backup`
locks, os_locks        keep a second run out: `locked`, `folder_lock`
temporary              `TemporaryFolder`, `temporary_file`, `remove_stale`
reading, safe_yaml     bounded reading of files of unknown origin: `read_small`, `safe_yaml.parse`
digest                 `sha256_file`
lazy                   names that `__init__.py` imports when they are used
lookup, names          what a path that does not exist probably meant
paths, user_folders    `~`, variables, the home folder and what to use without one
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddlex_feat.fileio.lazy import lazy_names

if TYPE_CHECKING:
    from paddlex_feat.fileio.atomic import atomic_path, read_result, write_bytes, write_json, write_text
    from paddlex_feat.fileio.atomic_folder import open_during_swap, recover_folder, resolve_during_swap
    from paddlex_feat.fileio.backups import backup, write_with_backup
    from paddlex_feat.fileio.digest import sha256_file
    from paddlex_feat.fileio.locks import folder_lock, locked
    from paddlex_feat.fileio.reading import decode_text, read_small
    from paddlex_feat.fileio.temporary import TemporaryFolder, remove_stale, temporary_file

__all__ = [
    "TemporaryFolder",
    "atomic_path",
    "backup",
    "decode_text",
    "folder_lock",
    "locked",
    "open_during_swap",
    "read_result",
    "read_small",
    "recover_folder",
    "remove_stale",
    "resolve_during_swap",
    "sha256_file",
    "temporary_file",
    "write_bytes",
    "write_json",
    "write_text",
    "write_with_backup",
]
if not TYPE_CHECKING:  # seen by a type checker, it would make any name pass
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "atomic": (
                "atomic_path",
                "read_result",
                "write_bytes",
                "write_json",
                "write_text",
            ),
            "atomic_folder": (
                "open_during_swap",
                "recover_folder",
                "resolve_during_swap",
            ),
            "backups": (
                "backup",
                "write_with_backup",
            ),
            "digest": ("sha256_file",),
            "locks": (
                "folder_lock",
                "locked",
            ),
            "reading": (
                "decode_text",
                "read_small",
            ),
            "temporary": (
                "TemporaryFolder",
                "remove_stale",
                "temporary_file",
            ),
        },
    )
