"""Identity of a list of images, cheap enough for a million."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from paddlex_feat.data.images.source import size_of


@dataclass(frozen=True)
class Fingerprint:
    """Number of images, SHA-256 over path, label and size of each, and the indices of files that do not exist."""

    images: int
    sha256: str
    missing: list[int]


def fingerprint(paths: Sequence[str], files: Sequence[str], labels: Sequence[int]) -> Fingerprint:
    """The fingerprint of listed paths, their files and labels.

    A change of pixels that keeps a file's size in bytes is not seen; check_dataset reads contents.
    """
    digest, missing = hashlib.sha256(), []
    for index, (path, file, label) in enumerate(zip(paths, files, labels, strict=True)):
        try:
            size = size_of(file)
        except OSError:
            size = -1
            missing.append(index)
        digest.update(f"{path}\0{label}\0{size}\n".encode(errors="surrogateescape"))
    return Fingerprint(len(files), digest.hexdigest(), missing)
