"""One of several parts of a job, which need not know of each other: every n-th image, from the i-th on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeVar

MOST = 99_999  # parts of a job
_T = TypeVar("_T")


@dataclass(frozen=True)
class Shard:
    """Part `number`, counted from 0, of `count` parts."""

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Shard:
        """The shard of "i/n". Raises ValueError."""
        number, count = map(int, text.split("/"))
        if not 0 <= number < count <= MOST:
            raise ValueError(f"is not i/n with i from 0 to {count - 1}")
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def name(self) -> str:
        """For files, such as "00003-of-00008"."""
        return f"{self.number:05d}-of-{self.count:05d}"

    def file(self, stem: str) -> str:
        """Name of its .npz file."""
        return f"{stem}-{self.name}.npz"

    def part_of(self, items: Iterable[_T]) -> Iterator[_T]:
        """Its items; all are read."""
        return islice(items, self.number, None, self.count)
