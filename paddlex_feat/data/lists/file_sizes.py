"""Sizes of very many files: by several processes, for asking the system takes most of the time."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from paddlex_feat.data.images.source import size_of
from paddlex_feat.data.lists.columns import Files
from paddlex_feat.runtime.cpu import cpu_count

ROWS = 2**16  # that are answered together
_MANY = 200_000  # files from which on processes are worth their start
_MOST = 8  # processes

_files: Sequence[str] = ()  # in a process of the pool: a copy of its parent's


def file_sizes(files: Sequence[str]) -> Iterator[np.ndarray]:
    """Bytes of each image, ROWS at a time, int64 [<= ROWS]; -1 where its file does not exist."""
    starts = range(0, len(files), ROWS)
    count, done = min(cpu_count(), _MOST), 0
    # Copies of this process, to which nothing has to be sent; only Linux makes them safely.
    if len(files) >= _MANY and count > 1 and sys.platform == "linux":
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(count, fork, _take, (files,)) as pool:
            try:
                for sizes in pool.map(_measure, starts):
                    yield sizes
                    done += 1
            except BrokenProcessPool:  # one was killed: the rest is measured here
                pass
    _take(files)
    try:
        yield from map(_measure, starts[done:])
    finally:
        _take(())


def _take(files: Sequence[str]) -> None:
    global _files
    _files = files


def _measure(start: int) -> np.ndarray:
    files = _files[start : start + ROWS]
    if isinstance(files, Files):
        return np.fromiter(map(_size, files.encoded()), np.int64, len(files))
    return np.fromiter(map(_size_of, files), np.int64, len(files))


def _size(file: bytes) -> int:
    try:
        return os.stat(file).st_size
    except OSError:
        return -1


def _size_of(file: str) -> int:
    try:
        return size_of(file)
    except OSError:
        return -1
