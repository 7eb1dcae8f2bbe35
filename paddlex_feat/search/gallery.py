"""The public class of search: a gallery of images that answers with the nearest ones. docs/search.md has an example."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.data.images.source import Box
from paddlex_feat.errors import GalleryError
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.inference.inputs.items import Item as Input
from paddlex_feat.inference.inputs.items import iter_images
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.inference.results import Failed
from paddlex_feat.search.answers import Answer, Hit
from paddlex_feat.search.calibrate import Calibration, calibrate
from paddlex_feat.search.items import Item, NewItem, check_vector
from paddlex_feat.search.nearest import Nearest
from paddlex_feat.search.store import Store
from paddlex_feat.search.thumbnails import thumbnail

AUTO = "auto"
MAX_TOPK = 10_000
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


class Gallery:
    """A gallery file with its features in memory. Threads may share it; other processes' changes are seen at once.

    Args:
        path: of the file.
        model: whose features the gallery has, for images as inputs; None: only features can be added and asked.

    Raises GalleryError if the file is not a gallery, or holds features of another model.
    """

    def __init__(self, path: str | Path, model: Predictor | None = None):
        self._lock = threading.RLock()
        self._model = model
        self._store = Store(Path(path))
        try:
            self.identity = _identity_of(self._store)
            if model is not None:
                self.require_same(model.identity)
            self._known, self._epoch = 0, self._store.epoch()
            self._nearest = Nearest(self.identity.dimension)
            self._calibration: tuple[int, Calibration | None] = (-1, None)
            self._refresh()
        except BaseException:
            self._store.close()
            raise

    @classmethod
    def create(cls, path: str | Path, model: Predictor | ModelIdentity) -> Gallery:
        """Make an empty gallery for the features of a model, or open the one of this model that is there."""
        identity = model if isinstance(model, ModelIdentity) else model.identity
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Store(Path(path), {"model": identity.as_json()}).close()
        gallery = cls(path, model if isinstance(model, Predictor) else None)
        if isinstance(model, ModelIdentity):
            gallery.require_same(model)
        return gallery

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._store.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        with self._lock:
            self._refresh()
            return len(self._nearest)

    def require_same(self, identity: ModelIdentity) -> None:
        """Raise GalleryError unless features of this model can be compared with those of the gallery."""
        if difference := self.identity.difference(identity):
            raise GalleryError(
                f"Features of this model cannot be compared with those of the gallery: {difference}.",
                where=str(self._store.path),
                fix="Use the model that the gallery was built with, or embed its images again: Index.action=rebuild.",
                code="gallery-other-model",
            )

    # Changes.

    def add(
        self,
        input: Any,
        labels: str | Sequence[str | None] | None = None,
        keys: Sequence[str] | None = None,
        data: Any = None,
        on_error: str = "raise",
        skip_unchanged: bool = False,
    ) -> Added:
        """Embed images and add them; one of a key that is there replaces it. What was added before an error stays.

        Args:
            input: as for `Predictor.predict`.
            labels: one for all images, or one for each, in the order of the input.
            keys: unique name of each; None: its path, with its box or page; images without a path need keys.
            data: of the user, a value of JSON, for all of them.
            on_error: "raise" or "skip", as for `Predictor.predict`.
            skip_unchanged: leave out files that the gallery has with this label, and that have not changed since.
        """
        return self.add_rows(_columns(input, labels, keys), data, on_error, skip_unchanged)

    def add_rows(
        self,
        rows: Iterable[tuple[Any, str | None, str | None]],
        data: Any = None,
        on_error: str = "raise",
        skip_unchanged: bool = False,
    ) -> Added:
        """As `add`, for an iterator of (image, label, key)."""
        model = self._require_model()
        added, states = Added(), self._states() if skip_unchanged else {}
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
                    added.ids += self.add_items(waiting)
                    waiting = []
        finally:  # by an error too: what is computed is kept
            results.close()
            if waiting:
                added.ids += self.add_items(waiting)
            added.failed = model.failed
        return added

    def add_items(self, items: Sequence[NewItem]) -> list[int]:
        """Add items with their features, all or none. Returns their ids."""
        with self._lock:
            return self._store.add(items)

    def remove(
        self,
        keys: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
        ids: Sequence[int] | None = None,
    ) -> int:
        """Remove the images that have one of the keys, and one of the labels, and one of the ids; those given count.

        Returns how many there were. Raises GalleryError if nothing is given.
        """
        if keys is None and labels is None and ids is None:
            raise GalleryError(
                "It is not said which images are to be removed.",
                where=str(self._store.path),
                fix="Give keys, labels or ids.",
                code="remove-nothing",
            )
        with self._lock:
            wanted = None if ids is None else set(ids)
            if keys is None and labels is None:
                found = sorted(wanted or ())
            else:
                found = [i.id for i in self._store.find(keys, labels) if wanted is None or i.id in wanted]
            return self._store.remove(found)

    def compact(self) -> None:
        """Give the space of removed images back to the disk."""
        with self._lock:
            self._store.compact()

    def rebuild(self, model: Predictor) -> int:
        """Embed all images again with another model, from their files; all or none. Returns their number.

        Raises GalleryError if an image has no file, ImageError if one cannot be read.
        """
        with self._lock:
            items = list(self._store.find())
        without = [item.key for item in items if item.path is None]
        if without:
            raise GalleryError(
                f"{len(without)} images have no file, as {without[0]}.",
                where=str(self._store.path),
                fix="Remove them, or build another gallery.",
                code="rebuild-without-file",
            )
        images = [item.path if item.box is None else {"img": item.path, "box": list(item.box)} for item in items]
        results = [result.feature for result in model.predict(images)]
        if len(results) != len(items):
            what = f"{len(items)} images give {len(results)} features: files of several pages cannot be embedded again."
            raise GalleryError(what, where=str(self._store.path), fix="Build another gallery.", code="rebuild-pages")
        with self._lock:
            self._store.replace_vectors(model.identity.as_json(), [item.id for item in items], np.stack(results))
            self.identity = model.identity
        return len(items)

    def meta(self) -> dict[str, Any]:
        """What the gallery says about itself."""
        with self._lock:
            return self._store.meta()

    def set_meta(self, name: str, value: Any) -> None:
        """Say something about the gallery."""
        with self._lock:
            self._store.set_meta(name, value)

    # Questions.

    def search(
        self, input: Any, topk: int = 10, threshold: float | str | None = AUTO, on_error: str = "raise"
    ) -> Generator[Answer, None, None]:
        """The nearest images of each image of the input, which is that of `Predictor.predict`.

        Args:
            input: images.
            topk: number of hits.
            threshold: below which an answer is unknown: a number, None for no threshold, or "auto", see `threshold`.
            on_error: "raise" or "skip", as for `Predictor.predict`.
        """
        least = self._least(threshold)
        for result in self._require_model().predict(input, on_error=on_error):
            name = result["input_path"] or f"input[{result.element}]"
            box = None if "box" not in result else Box(*result["box"])
            yield self.answers(result.feature[None], topk, least, [name], [box])[0]

    def answers(
        self,
        features: np.ndarray,
        topk: int = 10,
        threshold: float | str | None = AUTO,
        names: Sequence[str] | None = None,
        boxes: Sequence[Box | None] | None = None,
    ) -> list[Answer]:
        """As `search`, for features of the gallery's model: float32 [Q, D], of unit length."""
        if not 1 <= topk <= MAX_TOPK:
            raise GalleryError(
                f"topk is {topk}.", where="topk", fix=f"Give a number from 1 to {MAX_TOPK}.", code="topk-invalid"
            )
        names = names or [f"features[{number}]" for number in range(len(features))]
        for name, row in zip(names, features, strict=True):
            check_vector(row, self.identity.dimension, name)
        least = self._least(threshold)
        with self._lock:
            self._refresh()
            ids, scores = self._nearest.search(np.ascontiguousarray(features, np.float32), topk)
            items = {item.id: item for item in self._store.items(np.unique(ids).tolist())}
        answers = []
        for number, name in enumerate(names):
            pairs = zip(ids[number].tolist(), scores[number].tolist(), strict=True)
            hits = [Hit(items[i], score) for i, score in pairs if i in items]  # else removed this very moment
            answers.append(Answer(name, hits, least, boxes[number] if boxes else None))
        return answers

    def threshold(self) -> Calibration | None:
        """The threshold of "auto", found on the gallery as it is now; None for fewer than two labels."""
        with self._lock:
            self._refresh()
            known, found = self._calibration
            if known != self._known:
                labels = {item.id: item.label for item in self._store.find() if item.label is not None}
                found = calibrate(self._nearest, labels)
                self._calibration = self._known, found
            return found

    def items(
        self,
        keys: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
        after: int = 0,
        limit: int = -1,
    ) -> list[Item]:
        """The images that have one of the keys, and one of the labels, by id, after an id, at most `limit`."""
        with self._lock:
            return list(self._store.find(keys, labels, after, limit))

    def labels(self) -> list[tuple[str | None, int]]:
        """Each label, and how many images have it."""
        with self._lock:
            return self._store.labels()

    def thumbnail(self, i: int) -> bytes | None:
        """A small JPEG of an image; None if the gallery has none."""
        with self._lock:
            return self._store.thumbnail(i)

    def rows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """All ids and features, some at a time: int64 [N], float32 [N, D]; not to be changed."""
        with self._lock:
            self._refresh()
            yield from self._nearest.rows()

    # How it works.

    def _refresh(self) -> None:
        """Read what other processes, and this one, have changed."""
        if not self._store.changed(self._known):
            return
        if (epoch := self._store.epoch()) != self._epoch:
            if _identity_of(self._store) != self.identity:
                raise GalleryError(
                    "The images of the gallery have been embedded again with another model.",
                    where=str(self._store.path),
                    fix="Open it again, with that model.",
                    code="gallery-rebuilt",
                )
            self._nearest, self._known, self._epoch = Nearest(self.identity.dimension), 0, epoch
        for difference in self._store.differences(self._known):
            self._nearest.remove(difference.removed)
            self._nearest.add(difference.ids, difference.vectors)
            self._known = difference.change

    def _states(self) -> dict[str, tuple[int, str | None, str | None]]:
        with self._lock:
            return self._store.states()

    def _least(self, threshold: float | str | None) -> float | None:
        if threshold == AUTO:
            found = self.threshold()
            return None if found is None else found.threshold
        if threshold is None or (isinstance(threshold, (int, float)) and -1 <= threshold <= 1):
            return threshold
        raise GalleryError(
            f"The threshold is {threshold!r}.",
            where="threshold",
            fix="Give a cosine similarity from -1 to 1, auto or none.",
            code="threshold-invalid",
        )

    def _require_model(self) -> Predictor:
        if self._model is None:
            raise GalleryError(
                "Images cannot be embedded: the gallery was opened without its model.",
                where=str(self._store.path),
                fix="Give Gallery(path, model) the model that it was built with.",
                code="gallery-without-model",
            )
        return self._model


def _identity_of(store: Store) -> ModelIdentity:
    identity = ModelIdentity.from_json(store.meta().get("model"))
    if identity is None:
        raise GalleryError(
            "The gallery does not say which model its features are of.",
            where=str(store.path),
            fix="Build it again.",
            code="gallery-foreign",
        )
    return identity


def _columns(
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
