"""Decoded images kept in memory from one epoch to the next."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np

from paddlex_feat.pipeline.decode import Enough, decode_flags, decode_with, read_content
from paddlex_feat.pipeline.jpeg import frame_size


class ImageCache:
    """Pixels of image files, at the size at which they were decoded, up to a limit.

    What was kept first stays: images are asked for in random order, so any byte kept is as good as
    another, and dropping one for another would only cost. The pixels are those that decoding
    anew would give, so a cache of any size changes nothing but the time.

    Args:
        limit: bytes of pixels; 0 keeps nothing.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._lock = threading.Lock()
        self._images: dict[tuple[str, int], np.ndarray] = {}
        self._sizes: dict[str, tuple[int, int] | None] = {}
        self.bytes = 0

    def read_bgr(self, path: str | Path, enough: Enough | None = None) -> np.ndarray:
        """As decode.read_bgr; the array is read-only. Raises ImageError."""
        name = str(path)
        if name in self._sizes:
            kept = self._images.get((name, decode_flags(self._sizes[name], enough)))
            if kept is not None:
                return kept
        data = read_content(path)
        size = frame_size(data)
        flags = decode_flags(size, enough)
        image = decode_with(data, name, flags)
        image.flags.writeable = False
        self._keep(name, size, flags, image)
        return image

    def _keep(self, name: str, size: tuple[int, int] | None, flags: int, image: np.ndarray) -> None:
        with self._lock:
            if self.bytes + image.nbytes <= self._limit and (name, flags) not in self._images:
                self.bytes += image.nbytes
                self._images[name, flags] = image
                self._sizes[name] = size
