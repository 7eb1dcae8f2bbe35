"""What a target of the fuzzing is, and how its cases are made."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

LONGEST = 2**17  # bytes of a mutated case; crafted ones may be longer
NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 127, 128, 255, 256, 0x7FFF, 0x8000, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1)


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: on the command line.
        sound: gives the sound files that cases are mutations of.
        crafted: gives attacks that chance would not find; they are the first cases, and mutated too.
        tokens: words of the format, which mutations put in.
        use: hands a case to the program, with an empty folder for its files. Returns "accepted", or why the
            case was refused where the program says so without raising; raises FeatError where it does that.
        grow: changes what a sound file says and leaves its form sound; half of the mutations are of this kind.
    """

    name: str
    sound: Callable[[], list[bytes]]
    crafted: Callable[[], list[bytes]]
    tokens: Sequence[bytes]
    use: Callable[[bytes, Path], str]
    grow: Callable[[random.Random, bytes], bytes] | None = None

    @cached_property
    def _files(self) -> tuple[list[bytes], list[bytes]]:
        return self.sound(), self.crafted()

    def case(self, number: int, seed: int) -> bytes:
        """The bytes of a case: first the crafted ones, then mutations."""
        sound, crafted = self._files
        if number < len(crafted):
            return crafted[number]
        rng = random.Random(f"{self.name} {seed} {number}")
        if self.grow and rng.random() < 0.5:
            return self.grow(rng, rng.choice(sound))
        short = [data for data in crafted if len(data) <= LONGEST]
        data = rng.choice(sound if rng.random() < 0.8 or not short else short)
        return mutate(rng, data, self.tokens)


def mutate(rng: random.Random, data: bytes, tokens: Sequence[bytes]) -> bytes:
    """One to six random changes."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        rng.choice(_CHANGES)(rng, changed, tokens)
    return bytes(changed[:LONGEST])


def _span(rng: random.Random, data: bytearray) -> tuple[int, int]:
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + rng.choice((1, 2, 4, 16, 100, 1000)))


def _flip(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    for _ in range(rng.choice((1, 1, 4, 16))):
        if data:
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def _number(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    """Where a length or a size may stand; headers are at the front."""
    size, order = rng.choice((1, 2, 4, 8)), rng.choice(("big", "little"))
    at = rng.randrange(min(len(data), rng.choice((64, 512, 2**20))) + 1)
    data[at : at + size] = (rng.choice(NUMBERS) % 256**size).to_bytes(size, order)  # type: ignore[arg-type]


def _delete(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    start, end = _span(rng, data)
    del data[start:end]


def _double(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    start, end = _span(rng, data)
    data[end:end] = data[start:end] * min(rng.choice((1, 1, 1, 30, 1000)), LONGEST // max(1, end - start))


def _splice(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    """A piece stands elsewhere too."""
    start, end = _span(rng, data)
    at = rng.randrange(len(data) + 1)
    data[at : at + rng.choice((0, end - start))] = data[start:end]


def _truncate(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    del data[rng.randrange(len(data) + 1) :]


def _token(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    token = rng.choice(tokens)
    at = rng.randrange(len(data) + 1)
    data[at : at + rng.choice((0, len(token)))] = token


def _value(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    """A token takes the place of what stands between two separators of a text."""
    marks = [i for i, byte in enumerate(data[:5000]) if byte in b":=,[{ \n"]
    if marks:
        start = rng.choice(marks) + 1
        end = min((i for i in marks if i >= start), default=len(data))
        data[start:end] = b" " * rng.randrange(2) + rng.choice(tokens)


def _noise(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    start, end = _span(rng, data)
    data[start:end] = rng.randbytes(end - start)


def _zero(rng: random.Random, data: bytearray, tokens: Sequence[bytes]) -> None:
    start, end = _span(rng, data)
    data[start:end] = rng.choice((b"\0", b"\xff", b" ")) * (end - start)


_CHANGES = (
    _flip, _flip, _number, _number, _delete, _double, _splice, _truncate, _token, _token, _value, _value, _noise, _zero,
)  # fmt: skip
