"""Cache of decoded images, from one epoch to the next, shared by all decoders of a machine.

On Linux the memory is an anonymous file (memfd), which decoding processes and other processes of a job map too. It is
freed with the last of them, however they end, and /dev/shm is not used.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from mmap import mmap
from pathlib import Path

import numpy as np

from paddlex_feat.data.images.decode import (
    REDUCED,
    IsLargeEnough,
    decode_admitted,
    decode_flags,
    read_identified,
    require_admissible,
)
from paddlex_feat.data.images.jpeg import frame_size
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.source import box_of, crop
from paddlex_feat.fileio.os_locks import HAS_FLOCK, process_lock
from paddlex_feat.fileio.reading import open_flags

log = logging.getLogger(__name__)
_FLAGS = (cv2.IMREAD_COLOR, *(flag for _, flag in REDUCED))
# The table: a header of 8 words (mark, bytes of pixels, records), then records of 12: two of the key, the size in the
# frame header of a JPEG, and for each of _FLAGS the offset of the pixels, 0 if they are not kept, and their shape.
_HEADER, _RECORD = 8, 12
_MARK, _BYTES, _RECORDS = range(3)
_TYPICAL = 4096  # bytes of pixels a record is set aside for
_ALIGNED = 64
_MAX_ADMITTED = 2**20  # files whose header check is remembered, at about 70 bytes each


class ImageCache:
    """Pixels of image files, at the size at which they were decoded, up to a limit.

    Images are never evicted: they are read in random order, so every cached byte is as useful as another. A cached
    image has the pixels that decoding gives, so a cache of any size changes only the time.

    Readers take no lock: a record's key and an image's offset are written last.

    Args:
        limit: bytes of pixels; 0 caches nothing.
        fd: descriptor of another cache's memory, of the same limit; this cache takes it over.

    Raises:
        OSError: `fd` cannot be mapped. If new memory cannot be mapped, a warning is logged and nothing is cached.
    """

    def __init__(self, limit: int, fd: int | None = None):
        self._admitted: set[int] = set()
        self._lock = threading.Lock()
        self.limit, self.fd = limit, fd
        self._slots = max(64, limit // _TYPICAL)
        self._start = -(-8 * (_HEADER + _RECORD * self._slots) // _ALIGNED) * _ALIGNED
        if not limit:
            return
        if fd is None:
            try:
                self._map = self._allocated()
            except (OSError, OverflowError, ValueError) as error:
                log.warning("Decoded images are not cached: %d MiB cannot be mapped (%s).", limit >> 20, error)
                self.limit = 0
                return
        else:
            self._map = mmap(fd, self._start + limit)
        if self.fd is not None:
            weakref.finalize(self, os.close, self.fd)
        self._table = memoryview(self._map)[: self._start].cast("Q")
        if fd is None:
            self._table[_MARK] = int.from_bytes(os.urandom(7), "big")

    def _allocated(self) -> mmap:
        """Map memory; the system allocates it when it is written."""
        if not (HAS_FLOCK and hasattr(os, "memfd_create")):
            return mmap(-1, self._start + self.limit)
        self.fd = os.memfd_create("paddlex_feat_images")
        try:
            os.ftruncate(self.fd, self._start + self.limit)
            return mmap(self.fd, self._start + self.limit)
        except BaseException:
            os.close(self.fd)
            self.fd = None
            raise

    def address(self) -> tuple[int, int, int]:
        """Process, descriptor and mark by which `attached` finds this cache; (0, 0, 0) if it cannot be shared."""
        return (os.getpid(), self.fd, self._table[_MARK]) if self.limit and self.fd is not None else (0, 0, 0)

    @classmethod
    def attached(cls, limit: int, process: int, descriptor: int, mark: int) -> ImageCache | None:
        """The cache of another process of the same user and machine; None if it cannot be opened."""
        if not mark:
            return None
        with suppress(OSError, ValueError):
            fd = os.open(f"/proc/{process}/fd/{descriptor}", os.O_RDWR | open_flags())
            try:
                found = cls(limit, fd)
            except BaseException:
                os.close(fd)
                raise
            return found if found._table[_MARK] == mark else None
        return None

    @property
    def bytes(self) -> int:
        """Size of the cached pixels in bytes."""
        return self._table[_BYTES] if self.limit else 0

    def read_bgr(self, path: str | Path, is_large_enough: IsLargeEnough | None = None) -> np.ndarray:
        """Read an image file as decode.read_bgr does; the array is read-only. Raises ImageError."""
        name, box = str(path), box_of(path)
        is_large_enough = None if box else is_large_enough
        key = _key(name) if self.limit else (0, 0)
        at = self._find(key) if self.limit else None
        if at is not None and self._table[at]:
            size = self._table[at + 2]
            kept = self._kept(at, decode_flags((size >> 32, size & 0xFFFFFFFF) if size else None, is_large_enough))
            if kept is not None:
                return kept
        data, identity = read_identified(path)
        if identity not in self._admitted:  # the same bytes were checked in an earlier epoch
            require_admissible(data, name)
            if len(self._admitted) < _MAX_ADMITTED:
                self._admitted.add(identity)
        frame = frame_size(data)
        flags = decode_flags(frame, is_large_enough)
        image = decode_admitted(data, name, flags)
        image = crop(image, box, name) if box else image
        image.flags.writeable = False
        if self.bytes + image.nbytes <= self.limit:
            self._keep(key, frame, flags, image)
        return image

    def _find(self, key: tuple[int, int]) -> int | None:
        """Offset in the table of a key's record, or of the free one where it belongs; None in a full table."""
        table, slot = self._table, key[0] % self._slots
        for _ in range(self._slots):
            at = _HEADER + _RECORD * slot
            first = table[at]
            if not first or (first == key[0] and table[at + 1] == key[1]):
                return at
            slot = (slot + 1) % self._slots
        return None

    def _kept(self, at: int, flags: int) -> np.ndarray | None:
        place = at + 3 + 2 * _FLAGS.index(flags)
        offset = self._table[place]
        if not offset:
            return None
        height, width = divmod(self._table[place + 1], 2**32)
        image = self._pixels(offset, height * width * 3).reshape(height, width, 3)
        image.flags.writeable = False
        return image

    def _pixels(self, offset: int, size: int) -> np.ndarray:
        return np.frombuffer(self._map, np.uint8, size, offset)

    def _keep(self, key: tuple[int, int], frame: tuple[int, int] | None, flags: int, image: np.ndarray) -> None:
        table, size = self._table, -(-image.nbytes // _ALIGNED) * _ALIGNED
        with self._exclusive():
            at, used = self._find(key), table[_BYTES]
            if at is None or used + size > self.limit:
                return
            place = at + 3 + 2 * _FLAGS.index(flags)
            if table[place] or (not table[at] and 4 * table[_RECORDS] >= 3 * self._slots):
                return
            table[_BYTES] = used + size
            if not table[at]:
                table[_RECORDS] += 1
                table[at + 1], table[at + 2] = key[1], (frame[0] << 32) + frame[1] if frame else 0
                table[at] = key[0]
        offset = self._start + used
        self._pixels(offset, image.nbytes)[:] = image.reshape(-1)
        table[place + 1] = (image.shape[0] << 32) + image.shape[1]
        table[place] = offset

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Be the only writer among threads and processes; the lock of a killed process is released."""
        with self._lock, process_lock(self.fd) if self.fd is not None else nullcontext():
            yield


def _key(name: str) -> tuple[int, int]:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little") or 1, int.from_bytes(digest[8:], "little")
