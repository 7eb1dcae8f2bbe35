"""A decoding process: it decodes slices into shared memory, and ends when the one that trains ends.

It imports neither Paddle nor the program that started the run.
"""

from __future__ import annotations

import os
import pickle
import signal
import struct
import traceback
from typing import NamedTuple

from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.images import decode
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.loading.ring import Geometry, Ring
from paddlex_feat.data.loading.slices import Failure, Samples
from paddlex_feat.runtime.malloc import keep_freed_memory
from paddlex_feat.runtime.opencv import silent_opencv
from paddlex_feat.runtime.signals import ENDING

# Place in the ring, slice, epoch (its last bits), and whether there is a message. A pipe hands over so few bytes whole.
TOKEN = struct.Struct("<HHHH")
READY = TOKEN.pack(0xFFFF, 0, 0, 0)


class Setup(NamedTuple):
    """What a process is told once."""

    augment: Augment
    preprocess: Preprocess
    cache_limit: int


class Job(NamedTuple):
    """A slice to be decoded: the files of the positions from `first` on, for the rows from `row` on."""

    key: tuple[int, ...]
    first: int
    row: int
    paths: list[str]


class Report(NamedTuple):
    """What is to be told of a slice beyond its pixels: what failed, and (file, text) of what a decoder repaired."""

    failures: list[Failure]
    repairs: list[tuple[str, str]]


def main(jobs: int, done: int, shared: int, cache: int | None, geometry: tuple[int, int, int]) -> None:
    """Work until the other end of the pipe `jobs` is closed. All but the last are file descriptors."""
    for number in ENDING:  # the process that trains takes them; its end is this one's
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    keep_freed_memory()
    ring = Ring(shared, Geometry(*geometry))
    setup: Setup = ring.read(0, 0)
    samples = Samples(setup.augment, setup.preprocess, ImageCache(setup.cache_limit, cache))
    repairs: list[tuple[str, str]] = []
    decode.on_repair = lambda name, said: repairs.append((name, said))
    try:
        with silent_opencv():
            os.write(done, READY)
            while len(token := os.read(jobs, TOKEN.size)) == TOKEN.size:
                place, part, epoch, _ = TOKEN.unpack(token)
                failures = _work(ring, samples, place, part) if epoch == ring.epoch & 0xFFFF else []
                if failures or repairs:
                    ring.write(place, part, Report(failures, repairs))
                os.write(done, TOKEN.pack(place, part, epoch, bool(failures or repairs)))
                repairs.clear()
    except BrokenPipeError:
        return


def _work(ring: Ring, samples: Samples, place: int, part: int) -> list[Failure]:
    key, first, row, paths = ring.read(place, part)
    try:
        return samples.fill(ring.images(place)[row : row + len(paths)], paths, key, first)
    except Exception as error:  # noqa: BLE001 - raised by the process that trains
        return [Failure(first, _portable(error))]


def _portable(error: Exception) -> Exception:
    """The error itself if it can be sent, else one with its traceback."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - our own
    except Exception:  # noqa: BLE001 - any of a class that we do not know
        return RuntimeError(traceback.format_exc()[-4000:])
    return error
