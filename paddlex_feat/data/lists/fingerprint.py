"""Identity of a list of images, cheap enough for a million."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from paddlex_feat.data.lists.columns import Texts
from paddlex_feat.data.lists.file_sizes import ROWS, file_sizes


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
    for number, sizes in enumerate(file_sizes(files)):
        part = slice(number * ROWS, (number + 1) * ROWS)
        own = paths[part]
        encoded = own.encoded() if isinstance(own, Texts) else (path.encode(errors="surrogateescape") for path in own)
        rows = zip(encoded, labels[part], sizes.tolist(), strict=True)
        digest.update(b"".join(b"%b\0%d\0%d\n" % row for row in rows))
        missing += (np.flatnonzero(sizes < 0) + part.start).tolist()
    return Fingerprint(len(files), digest.hexdigest(), missing)
