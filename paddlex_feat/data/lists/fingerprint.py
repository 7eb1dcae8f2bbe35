"""Identity of a list of images, cheap enough for a million."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from paddlex_feat.data.lists.columns import Numbers
from paddlex_feat.data.lists.file_sizes import file_sizes

_ROWS = 4096  # that are hashed together


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
    digest, sizes = hashlib.sha256(), file_sizes(files)
    rows = (
        f"{path}\0{label}\0{size}\n".encode(errors="surrogateescape")
        for path, label, size in zip(paths, labels, Numbers(sizes), strict=True)
    )
    for part in batched(rows, _ROWS):
        digest.update(b"".join(part))
    return Fingerprint(len(files), digest.hexdigest(), np.flatnonzero(sizes < 0).tolist())


def batched(rows: Iterable[bytes], count: int) -> Iterator[list[bytes]]:
    """The rows in lists of `count`; the last may be shorter."""
    rows = iter(rows)
    while part := list(islice(rows, count)):
        yield part
