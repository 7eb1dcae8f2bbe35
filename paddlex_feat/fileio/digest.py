"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

_CHUNK = 2**20  # bytes


def sha256_file(*paths: Path) -> str:
    """SHA-256 of the contents of files, one after the other, in hexadecimal digits. Raises OSError."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
