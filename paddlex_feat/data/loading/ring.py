"""Memory that decoding processes and the one that trains share: a ring of batches, and a message for each slice.

The memory is a file without a name: the kernel frees it with the last process that has it open, however that ends,
and the size of /dev/shm does not matter.
"""

from __future__ import annotations

import os
import pickle
from mmap import ALLOCATIONGRANULARITY, mmap
from typing import Any, NamedTuple

import numpy as np

from paddlex_feat.data.loading.slices import MAX_SLICE

_MESSAGE = MAX_SLICE * 2**17  # bytes set aside for a message, of which only what is written takes memory


class Geometry(NamedTuple):
    """Form of a ring.

    Attributes:
        places: batches that it holds.
        batch: most images of one; size: their side in pixels.
    """

    places: int
    batch: int
    size: int

    @property
    def image_bytes(self) -> int:
        """Bytes of all images of a place, in whole pages."""
        return _paged(self.batch * self.size * self.size * 3)

    @property
    def messages(self) -> int:
        """Where the messages begin."""
        return ALLOCATIONGRANULARITY + self.places * self.image_bytes

    @property
    def total(self) -> int:
        """Bytes of the file."""
        return self.messages + self.places * self.batch * _MESSAGE


class Ring:
    """A ring in the file `fd`.

    Args:
        fd: from `reserve`; it stays the caller's.

    Raises OSError if it cannot be mapped.
    """

    def __init__(self, fd: int, geometry: Geometry):
        self.geometry = geometry
        self._map = mmap(fd, geometry.total)
        self._epoch = memoryview(self._map)[:8].cast("Q")

    @property
    def epoch(self) -> int:
        """Number of the epoch at work; slices of an earlier one need not be decoded."""
        return self._epoch[0]

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._epoch[0] = number

    def images(self, place: int) -> np.ndarray:
        """The images of a place, uint8 [batch, size, size, 3]; each call gives an array with a life of its own."""
        _, batch, size = self.geometry
        start = ALLOCATIONGRANULARITY + place * self.geometry.image_bytes
        flat = np.frombuffer(self._map, np.uint8, batch * size * size * 3, start)
        return flat.reshape(batch, size, size, 3)

    def write(self, place: int, part: int, message: Any) -> None:
        """Store the message of a slice: its job before it is decoded, a report after that."""
        text, start = pickle.dumps(message, protocol=5), self._message(place, part)
        if len(text) > _MESSAGE:
            raise ValueError("a slice's message is too long")
        self._map[start : start + len(text)] = text

    def read(self, place: int, part: int) -> Any:
        """What was written last. Only processes of this run have the file open."""
        return pickle.loads(memoryview(self._map)[self._message(place, part) :])  # noqa: S301

    def _message(self, place: int, part: int) -> int:
        return self.geometry.messages + (place * self.geometry.batch + part) * _MESSAGE


def reserve(geometry: Geometry) -> int:
    """A file for a ring, whose images have their memory already: later there might be none left.

    Raises OSError where the system has no such files, or too little memory.
    """
    if not hasattr(os, "memfd_create"):
        raise OSError(None, "this system has no memory files")
    fd = os.memfd_create("paddlex_feat_batches")
    try:
        os.ftruncate(fd, geometry.total)
        os.posix_fallocate(fd, 0, geometry.messages)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _paged(size: int) -> int:
    return -(-size // ALLOCATIONGRANULARITY) * ALLOCATIONGRANULARITY
