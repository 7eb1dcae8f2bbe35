"""The images of one input, divided among the processes of a job: rank 0 deals them, and gets what becomes of them.

A round is a share of images for each rank. Rank 0 alone reads the input, so the other ranks need neither its lists nor
its order. All ranks run the same pipeline over their shares and exchange messages in the same order: what is dealt,
some rounds ahead, and what was computed.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from paddlex_feat import errors
from paddlex_feat.data.images.source import Box, path_of, plain_of
from paddlex_feat.errors import FeatError, ImageError
from paddlex_feat.inference.inputs.items import Item
from paddlex_feat.runtime.distributed import ProcessGroup

# An image with its feature, float32 [D], or the error that prevented it, and with what the caller wants to see of it.
Outcome = tuple[Item, np.ndarray | Exception, Any]
_HEAD = 8  # bytes that say how long the JSON of a message is


class Rounds:
    """The rounds of one input; a group of one process has everything to itself.

    Args:
        group: the processes of the job.
    """

    def __init__(self, group: ProcessGroup):
        self._group = group
        self._dealt: deque[list[Item]] = deque()  # on rank 0: what the other ranks are computing

    def own(self, stream: Iterator[Item], size: int) -> Iterator[list[Item]]:
        """This rank's share of each round.

        Args:
            stream: the input; that of rank 0 counts.
            size: images of a share, at most.
        """
        if self._group.size == 1:
            while share := list(islice(stream, size)):
                yield share
        elif self._group.rank == 0:
            yield from self._deal(stream, size)
        else:
            while message := self._group.broadcast_bytes(b""):
                yield _items(message)[self._group.rank - 1]

    def _deal(self, stream: Iterator[Item], size: int) -> Iterator[list[Item]]:
        others = range(1, self._group.size)
        try:
            while items := list(islice(stream, size * self._group.size)):
                self._group.broadcast_bytes(_message([items[rank * size : (rank + 1) * size] for rank in others]))
                self._dealt.append(items[size:])
                yield items[:size]
        except Exception:  # of the input, which ends here for all; not of a job that is being given up
            self._group.broadcast_bytes(b"")
            raise
        self._group.broadcast_bytes(b"")

    def gathered(self, own: list[Outcome]) -> list[Outcome]:
        """All outcomes of a round, in the order of the input, on rank 0; on the others none.

        Raises an exception of `own` on another rank than 0 that is not about an image.
        """
        if self._group.size == 1:
            return own
        answers = self._group.all_gather_bytes(_answer(own) if self._group.rank else b"")
        if self._group.rank:
            return []
        found = [outcome for answer in answers[1:] for outcome in _outcomes(answer)]
        theirs = zip(self._dealt.popleft(), found, strict=True)
        return own + [(item, _known_error(item) or outcome, seen) for item, (outcome, seen) in theirs]


def _known_error(item: Item) -> Exception | None:
    return item.source if isinstance(item.source, Exception) else None


def _message(shares: list[list[Item]]) -> bytes:
    """The images that rank 0 deals, as JSON: from the command line they are texts."""
    return json.dumps([[_plain(item) for item in share] for share in shares]).encode("ascii")


def _plain(item: Item) -> list[Any] | None:
    """An image as JSON. None: there is an error in its place, which rank 0 knows."""
    if _known_error(item):
        return None
    return [item.input_path, item.location, plain_of(item.source), item.page_index, item.offset, item.box]


def _items(message: bytes) -> list[list[Item]]:
    """The images of `_message`."""
    return [[_item(*plain) if plain else _NOTHING for plain in share] for share in json.loads(message)]


_NOTHING = Item(None, "input", ImageError("known on rank 0"))


def _item(path: Any, location: Any, source: Any, page: Any, offset: Any, box: Any) -> Item:
    return Item(path, location, path_of(source), page, offset, box=box and Box(*box))


def _answer(own: list[Outcome]) -> bytes:
    """Outcomes as their features, one after the other, with JSON about them before and what is seen behind."""
    rows, seen, told = [], [], []
    for _, outcome, view in own:
        if isinstance(outcome, Exception):
            told.append([_told(outcome), 0])
        else:
            rows.append(outcome)
            seen.append(view or b"")
            told.append([None, None if view is None else len(view)])
    head = json.dumps([len(rows[0]) if rows else 0, told]).encode("ascii")
    return b"".join([len(head).to_bytes(_HEAD, "big"), head, *(row.tobytes() for row in rows), *seen])


def _outcomes(answer: bytes) -> Iterator[tuple[np.ndarray | Exception, Any]]:
    """The outcomes of `_answer`, each with what is seen."""
    start = _HEAD + int.from_bytes(answer[:_HEAD], "big")
    width, told = json.loads(answer[_HEAD:start])
    count = sum(error is None for error, _ in told)
    rows = iter(np.frombuffer(answer, np.float32, count * width, start).reshape(count, width).copy())
    start += 4 * count * width
    for error, length in told:
        if error is not None:
            name, what, where, fix, code = error
            yield getattr(errors, name)(what, where=where, fix=fix, code=code), None
        else:
            yield next(rows), None if length is None else answer[start : start + length]
            start += length or 0


def _told(error: Exception) -> list[str | None]:
    if not isinstance(error, FeatError):  # a fault of this program or a lack of memory, which ends the job
        raise error
    return [type(error).__name__, error.what, error.where, error.fix, error.code]
