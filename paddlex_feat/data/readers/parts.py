"""Names that data sets give their parts, and which of these are trained on, searched and asked for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from paddlex_feat.data.readers.items import UNDIVIDED, Items, Part

TRAIN, VALIDATION, TEST, GALLERY, QUERY = "train", "validation", "test", "gallery", "query"
_NAMES = {
    TRAIN: ("train", "training", "trainset", "trainval", "trn"),
    VALIDATION: ("val", "valid", "validation", "dev"),
    TEST: ("test", "testing", "testset", "tst", "eval", "evaluation", "holdout"),
    GALLERY: ("gallery", "database", "index", "reference", "references"),
    QUERY: ("query", "queries", "probe", "probes"),
}
_PARTS = {name: part for part, names in _NAMES.items() for name in names}


_FILLING = {
    "set",
    "sets",
    "data",
    "image",
    "images",
    "img",
    "imgs",
    "picture",
    "pictures",
    "photos",
    "split",
    "list",
    "",
}


@lru_cache(maxsize=4096)
def part_of(name: str) -> str | None:
    """The part that a folder, a file or a column's value names: TRAIN, …, QUERY; None for other names.

    Words such as set and images may stand beside it, and a number, as in training_set and test1.
    """
    words = re.split(r"[^a-z]+", name.strip().lower())
    named = [word for word in words if word not in _FILLING]
    return _PARTS.get(named[0]) if len(named) == 1 else None


@lru_cache(maxsize=4096)
def part_in(name: str) -> str | None:
    """The part that a word of a name says, as in instances_train2017; None for none, or for several."""
    parts = {part_of(word) for word in re.split(r"[^a-z]+", name.lower())} - {None}
    return parts.pop() if len(parts) == 1 else None


def says_parts(parts: Iterable[str | None]) -> bool:
    """Whether folders of these parts, None for others, divide a data set: for training, or for search, or for tests."""
    found = set(parts)
    return len(found - {None}) > 1 and (TRAIN in found or {GALLERY, QUERY} <= found or {VALIDATION, TEST} <= found)


def assign(items: Items, found: dict[str, Part]) -> str:
    """Make parts the lists of a data set; returns how, as a clause.

    Gallery and query are those of these names if there are both. Else they are the images of one part, each of which
    looks for the others of its class: of the test, else of the validation.
    """
    found = {name: part for name, part in found.items() if part.images}
    train = found.pop(TRAIN, None)
    if GALLERY in found and QUERY in found:
        items.parts |= {name: found.pop(name) for name in (GALLERY, QUERY)}
        told = "gallery and query are those of these names"
    else:
        name = next((n for n in (TEST, GALLERY, QUERY, VALIDATION) if n in found), None)
        if name is None:
            if train is not None:
                items.parts[UNDIVIDED] = train
            return "no part is for evaluation"
        items.evaluate(found.pop(name))
        told = f"gallery and query are both {name}, where each image looks for the others of its class"
    if train is not None:
        items.parts[TRAIN] = train
    rest = " and ".join(found)
    return f"{told}; {rest} {'is' if len(found) == 1 else 'are'} not used" if rest else told
