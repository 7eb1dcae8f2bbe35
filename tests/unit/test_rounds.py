"""What rank 0 deals and what it gets back, without processes."""

from __future__ import annotations

from collections import deque

import numpy as np
import pytest

from paddlex_feat.data.images.source import Box, ImageSource
from paddlex_feat.errors import DownloadError, ImageError
from paddlex_feat.inference import rounds
from paddlex_feat.inference.inputs.items import Item
from paddlex_feat.inference.rounds import Rounds


class Messages:
    """The group of rank 0 or 1, whose messages are kept, or given out again."""

    size, local_size = 2, 2

    def __init__(self, rank: int, sent: deque[bytes], answers: deque[bytes]):
        self.rank, self.sent, self.answers = rank, sent, answers

    def broadcast_bytes(self, data: bytes) -> bytes:
        if self.rank == 0:
            self.sent.append(data)
            return data
        return self.sent.popleft()

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        if self.rank:
            self.answers.append(data)
        return [b"", self.answers[0] if self.rank else self.answers.popleft()]


@pytest.fixture
def pair() -> tuple[Rounds, Rounds]:
    sent, answers = deque[bytes](), deque[bytes]()
    return Rounds(Messages(0, sent, answers)), Rounds(Messages(1, sent, answers))  # type: ignore[arg-type]


NAME = "a\udcff.jpg"  # a name that is not UTF-8
ITEMS = [
    Item("0.jpg", "input[0]", "0.jpg"),
    Item(None, "input[1]", ImageError("missing")),
    Item(NAME, "list.txt:3", ImageSource(NAME, "part.tar", 512, 99, Box(1, 2, 3.5, 4)), box=Box(0, 0, 2, 2)),
    Item("p.tif", "input[3]", "p.tif", page_index=2, offset=77),
    Item("4.jpg", "input[4]", "4.jpg"),
]


def told(item: Item) -> tuple:
    source = item.source
    parts = (source.file, source.start, source.length, source.box) if isinstance(source, ImageSource) else ()
    return item.input_path, item.location, str(source), parts, item.page_index, item.offset, item.box


def test_items_reach_the_other_rank_whole_and_outcomes_come_back_in_order(pair):
    lead, other = pair
    shares = list(lead.own(iter(ITEMS), 2))
    assert shares == [ITEMS[:2], ITEMS[4:]]
    received = other.own(iter(()), 2)
    theirs = [next(received), next(received)]
    assert next(received, None) is None
    assert [told(item) for item in theirs[0]] == [told(item) for item in ITEMS[2:4]] and theirs[1] == []
    row, fault = np.arange(3, dtype=np.float32), DownloadError("gone", where="w", fix="f", code="c")
    assert other.gathered([(theirs[0][0], row, b"small"), (theirs[0][1], fault, None)]) == []
    own = [(ITEMS[0], row + 1, b"x"), (ITEMS[1], ITEMS[1].source, None)]
    found = lead.gathered(own)
    assert [item for item, _, _ in found] == ITEMS[:4] and found[:2] == own
    assert found[2][1].tolist() == [0, 1, 2] and found[2][2] == b"small"
    error = found[3][1]
    assert isinstance(error, DownloadError) and (error.what, error.where, error.fix, error.code) == (
        "gone",
        "w",
        "f",
        "c",
    )
    assert other.gathered([]) == []
    assert lead.gathered([(ITEMS[4], row, None)]) == [(ITEMS[4], row, None)]


def test_an_error_in_place_of_an_image_stays_rank_0s(pair):
    lead, other = pair
    given = [ITEMS[0], ITEMS[1]]
    assert list(lead.own(iter(given), 1)) == [[ITEMS[0]]]
    (item,) = next(other.own(iter(()), 1))
    with pytest.raises(ImageError) as caught:
        item.decode()
    other.gathered([(item, caught.value, None)])
    assert lead.gathered([(ITEMS[0], np.zeros(2, np.float32), None)])[1] == (ITEMS[1], ITEMS[1].source, None)


def test_an_input_that_raises_ends_the_others_too(pair):
    lead, other = pair

    def broken():
        yield ITEMS[0]
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        list(lead.own(broken(), 1))
    assert list(other.own(iter(()), 1)) == []


def test_a_fault_that_is_not_about_an_image_is_raised_where_it_is(pair):
    with pytest.raises(MemoryError):
        pair[1].gathered([(ITEMS[0], MemoryError(), None)])


def test_features_of_no_image_are_no_message_without_a_width():
    assert list(rounds._outcomes(rounds._answer([]))) == []
