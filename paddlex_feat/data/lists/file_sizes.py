"""Sizes of very many files: by several processes, for asking the system takes most of the time."""

from __future__ import annotations

import itertools
import mmap
import multiprocessing
import sys
from collections.abc import Sequence

import numpy as np

from paddlex_feat.data.images.source import size_of
from paddlex_feat.runtime.cpu import cpu_count

_MANY = 200_000  # files from which on processes are worth their start
_MOST = 8  # processes


def file_sizes(files: Sequence[str]) -> np.ndarray:
    """Bytes of each image, int64 [N]; -1 where its file does not exist."""
    count = min(cpu_count(), _MOST)
    # Copies of this process, which need no arguments; only Linux makes them safely.
    if len(files) < _MANY or count == 1 or sys.platform != "linux":
        sizes = np.empty(len(files), np.int64)
        _measure(files, 0, len(files), sizes)
        return sizes
    shared = np.frombuffer(mmap.mmap(-1, 8 * len(files)), np.int64)
    bounds = np.linspace(0, len(files), count + 1).astype(int).tolist()
    fork = multiprocessing.get_context("fork")
    own, *others = itertools.pairwise(bounds)
    processes = [fork.Process(target=_measure, args=(files, *part, shared), daemon=True) for part in others]
    for process in processes:
        process.start()
    _measure(files, *own, shared)
    for process, part in zip(processes, others, strict=True):
        process.join()
        if process.exitcode:  # it was killed
            _measure(files, *part, shared)
    return shared


def _measure(files: Sequence[str], start: int, stop: int, sizes: np.ndarray) -> None:
    for index, file in enumerate(files[start:stop], start):
        try:
            sizes[index] = size_of(file)
        except OSError:
            sizes[index] = -1
