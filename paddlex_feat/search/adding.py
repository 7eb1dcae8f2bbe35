"""Add images to a gallery: embed them, some at a time, and keep what is computed even if a later one fails."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from paddlex_feat.data.images.source import Box
from paddlex_feat.errors import GalleryError
from paddlex_feat.inference.inputs.items import Item as Input
from paddlex_feat.inference.inputs.items import iter_images
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.inference.results import Failed
from paddlex_feat.search.backend import Backend
from paddlex_feat.search.items import NewItem
from paddlex_feat.search.thumbnails import thumbnail

_AT_ONCE = 128  # images of a transaction: so many are lost at most if a process is killed


@dataclass
class Added:
    """What became of inputs that were added.

    Attributes:
        ids: of the images that are new, or replace one of the same key.
        unchanged: images that were there already, from files that have not changed since.
        keys: of all images of the input.
        failed: inputs that could not be used.
    """

    ids: list[int] = field(default_factory=list)
    unchanged: int = 0
    keys: set[str] = field(default_factory=set)
    failed: list[Failed] = field(default_factory=list)


def add_images(
    backend: Backend,
    model: Predictor,
    rows: Iterable[tuple[Any, str | None, str | None]],
    data: Any,
    on_error: str,
    skip_unchanged: bool,
) -> Added:
    """Embed (image, label, key) and add them, as `Gallery.add` says."""
    added, states = Added(), backend.states() if skip_unchanged else {}
    waiting: list[NewItem] = []
    labelled: dict[int, tuple[str | None, str, str | None]] = {}  # label, key and state of what is being computed

    def images() -> Iterator[Input]:
        number = 0
        for place, (image, label, key) in enumerate(rows):
            for item in iter_images(image, location=f"input[{place}]"):
                name, state = _key_of(item, key), _state(item.input_path)
                added.keys.add(name)
                if name in states and states[name][1:] == (label, state) and state is not None:
                    added.unchanged += 1
                    continue
                labelled[number] = label, name, state
                number += 1
                yield item

    results = model.predict_with(images(), thumbnail, on_error=on_error)
    try:
        for result, small in results:
            label, name, state = labelled.pop(result.element)
            box = None if "box" not in result else Box(*result["box"])
            waiting.append(NewItem(name, result.feature, label, result["input_path"], box, data, state, small))
            if len(waiting) == _AT_ONCE:
                added.ids += backend.add(waiting)
                waiting = []
    finally:  # by an error too: what is computed is kept
        results.close()
        if waiting:
            added.ids += backend.add(waiting)
        added.failed = model.failed
    return added


def columns_of_input(
    input: Any, labels: str | Sequence[str | None] | None, keys: Sequence[str] | None
) -> Iterator[tuple[Any, str | None, str | None]]:
    """(image, label, key) of each element of an input."""
    images = input if isinstance(input, (list, tuple)) else [input]
    for what, column in (("labels", labels), ("keys", keys)):
        if column is not None and not isinstance(column, str) and len(column) != len(images):
            raise GalleryError(
                f"There are {len(images)} inputs and {len(column)} {what}.",
                where=what,
                fix="Give one for each element of the list of inputs, or none.",
                code="column-length",
            )
    for number, image in enumerate(images):
        label = labels if labels is None or isinstance(labels, str) else labels[number]
        yield image, label, keys[number] if keys else None


def _key_of(item: Input, key: str | None) -> str:
    """The key of an image: the one that is given, else its path; with its page or box, of which there may be many."""
    page = "" if item.page_index is None else f" page {item.page_index}"
    part = "" if item.box is None else f"[{item.box}]"
    name = key or item.input_path
    if name is None and not isinstance(item.source, Exception):
        raise GalleryError(
            "An image without a path needs a key.",
            where=item.location,
            fix="Give keys, a unique name for each image.",
            code="key-missing",
        )
    return f"{name}{page}{part}"


def _state(path: str | None) -> str | None:
    """Size and time of change of a file; None if it cannot be told."""
    try:
        found = Path(path).stat() if path else None
    except (OSError, ValueError):
        return None
    return None if found is None else f"{found.st_size} {found.st_mtime_ns}"
