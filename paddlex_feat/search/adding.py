"""Add images to a gallery: embed them, some at a time, and keep what is computed even if a later one fails."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.data.images.source import Box, ImageSource
from paddlex_feat.errors import GalleryError, ImageError
from paddlex_feat.fileio.addresses import is_url
from paddlex_feat.inference.inputs.items import Item as Input
from paddlex_feat.inference.inputs.items import iter_images
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.inference.results import Failed, FeatureResult
from paddlex_feat.search.backend import Backend
from paddlex_feat.search.items import NewItem, text_problem
from paddlex_feat.search.thumbnails import thumbnail

log = logging.getLogger(__name__)
_AT_ONCE = 128  # images of a transaction: so many are lost at most if a process is killed
_NO_FEATURE = np.empty(0, np.float32)


@dataclass
class Added:
    """What became of inputs that were added.

    Attributes:
        ids: of the images that are new, or replace one of the same key.
        replaced: how many of these were there before, as far as it was looked for (`skip_unchanged`).
        unchanged: images that were there already, from files that have not changed since.
        repeated: keys that came again in the input; the first image of a key counts.
        keys: of all images of the input.
        failed: inputs that could not be used.
    """

    ids: list[int] = field(default_factory=list)
    replaced: int = 0
    unchanged: int = 0
    repeated: list[str] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    failed: list[Failed] = field(default_factory=list)


class _Adding:
    """One addition of many images.

    Args:
        states: id, label and state of what the gallery has, by key: files are left out that it has with the same
            label, and that have not changed since; None: all are taken.
    """

    def __init__(self, states: dict[str, tuple[int, str | None, str | None]] | None):
        self.added = Added()
        self._states = states or {}
        self._wanted: dict[int, NewItem] = {}  # what is being embedded, by its number, without its feature
        self._count = 0

    def images(self, rows: Iterable[tuple[Any, str | None, str | None]]) -> Iterator[Input]:
        """The images that have to be embedded, of (image, label, key)."""
        for place, (image, label, key) in enumerate(rows):
            for item in iter_images(image, location=f"input[{place}]"):
                new = _without_feature(item, image, label, key)
                if new.key in self.added.keys:
                    self.added.repeated.append(new.key)
                    continue
                self.added.keys.add(new.key)
                known = self._states.get(new.key)
                if known and new.state is not None and known[1:] == (new.label, new.state):
                    self.added.unchanged += 1
                    continue
                self._wanted[self._count] = new
                self._count += 1
                yield _refused(item, new)

    def item(self, result: FeatureResult, small: bytes, data: Any) -> NewItem:
        """The item of a result."""
        new = self._wanted.pop(result.element)
        self.added.replaced += new.key in self._states
        box = None if "box" not in result else Box(*result["box"])
        return replace(new, vector=result.feature, box=box, data=data, thumbnail=small)


def add_images(
    backend: Backend,
    model: Predictor,
    rows: Iterable[tuple[Any, str | None, str | None]],
    data: Any,
    on_error: str,
    skip_unchanged: bool,
) -> Added:
    """Embed (image, label, key) and add them, as `Gallery.add` says."""
    adding = _Adding(backend.states() if skip_unchanged else None)
    added, waiting = adding.added, list[NewItem]()
    results = model.predict_with(adding.images(rows), thumbnail, on_error=on_error)
    try:
        for result, small in results:
            waiting.append(adding.item(result, small, data))
            if len(waiting) == _AT_ONCE:
                added.ids += backend.add(waiting)
                waiting = []
    finally:  # by an error too: what is computed is kept
        results.close()
        if waiting:
            added.ids += backend.add(waiting)
        added.failed = model.failed
    if added.repeated:
        shown = added.repeated[0][:200]
        log.warning("%d images came again in the input, as %s: the first one counts", len(added.repeated), shown)
    return added


def columns_of_input(
    input: Any, labels: str | Sequence[str | None] | None, keys: str | Sequence[str] | None
) -> Iterator[tuple[Any, str | None, str | None]]:
    """(image, label, key) of each element of an input."""
    images = input if isinstance(input, (list, tuple)) else [input]
    keys = [keys] if isinstance(keys, str) else keys
    for what, column in (("labels", labels), ("keys", keys)):
        if column is not None and not isinstance(column, str) and len(column) != len(images):
            raise GalleryError(
                f"There are {len(images)} inputs and {len(column)} {what}.",
                where=what,
                fix="Give one for each element of the list of inputs, or none.",
                code="column-length",
            )
    if keys is not None and len(set(keys)) < len(keys):
        raise GalleryError("A key is given twice.", where="keys", fix="Keys are unique names.", code="key-repeated")
    for number, image in enumerate(images):
        label = labels if labels is None or isinstance(labels, str) else labels[number]
        yield image, label, keys[number] if keys else None


def _without_feature(item: Input, image: Any, label: str | None, key: str | None) -> NewItem:
    """What the gallery keeps of an image, but for its feature.

    Its key is the one that is given, else its path; with its page or box, of which there may be many.
    """
    page = "" if item.page_index is None else f" page {item.page_index}"
    part = "" if item.box is None else f"[{item.box}]"
    name = key or item.input_path or (item.location if isinstance(item.source, Exception) else None)
    if name is None:
        raise GalleryError(
            "An image without a path needs a key.",
            where=item.location,
            fix="Give keys, a unique name for each image.",
            code="key-missing",
        )
    within = image if isinstance(image, ImageSource) and image.length is not None else None
    path = item.input_path if within is None else None  # bytes within a file have no path of their own
    if path is not None and not is_url(path):
        path = str(Path(path).absolute())
    state = _state(path) if within is None else f"{within.start} {within.length} {_state(within.file)}"
    return NewItem(f"{name}{page}{part}", _NO_FEATURE, label, path, state=state)


def _refused(item: Input, new: NewItem) -> Input:
    """The input, with an error in place of its image if the gallery cannot keep its texts."""
    for what, text in (("path" if new.path else "key", new.key), ("label", new.label)):
        if text is not None and (problem := text_problem(text)):
            error = ImageError(
                f"Its {what} cannot be kept: {problem}.", where=item.name, fix=f"Give another {what}.", code="item-text"
            )
            return replace(item, source=error)
    return item


def _state(path: str | None) -> str | None:
    """Size and time of change of a file; None if it cannot be told."""
    try:
        found = Path(path).stat() if path else None
    except (OSError, ValueError):
        return None
    return None if found is None else f"{found.st_size} {found.st_mtime_ns}"
