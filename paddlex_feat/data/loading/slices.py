"""A slice of a training batch: the work that a decoding thread or process takes at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import ImageError

MAX_SLICE = 16  # images: handing over one at a time costs as much Python time as augmenting it
_SAMPLES, _REPLACEMENTS = 2, 4  # streams of random numbers; 1 and 3 are the sampler's and dropout's


class Samples(NamedTuple):
    """How files become samples. Each sample's randomness comes from the epoch's key and its position in the epoch."""

    augment: Augment
    preprocess: Preprocess
    cache: ImageCache | None

    def read(self, path: str, key: Sequence[int], position: int) -> np.ndarray:
        """The sample at a position: uint8 [size, size, 3]. Raises ImageError."""
        return self.augment.read(path, self.preprocess, _generator(key, _SAMPLES, position), self.cache)

    def fill(self, images: np.ndarray, paths: Sequence[str], key: Sequence[int], first: int) -> list[Failure]:
        """Write the samples at positions from `first` on into the rows of `images`; returns those that failed."""
        failures = []
        for row, path in enumerate(paths):
            try:
                images[row] = self.read(path, key, first + row)
            except ImageError as error:
                failures.append(Failure(first + row, error))
        return failures


class Failure(NamedTuple):
    """A sample that could not be read."""

    position: int
    error: Exception


def replacement_generator(key: Sequence[int], position: int) -> np.random.Generator:
    """Draws the image that takes the place of an undecodable one."""
    return _generator(key, _REPLACEMENTS, position)


def _generator(key: Sequence[int], stream: int, position: int) -> np.random.Generator:
    # The same as from the tuple, in half the time: none of the numbers is negative or has more than 32 bits.
    return np.random.default_rng(np.array((*key, stream, position), np.uint32))


def slices(images: int, workers: int) -> Iterator[slice]:
    """Rows of a batch by slices: at most MAX_SLICE each, and small enough that every worker has one."""
    size = min(MAX_SLICE, -(-images // workers))
    return (slice(at, min(at + size, images)) for at in range(0, images, size))
