"""The public class of search: a gallery of images that answers with the nearest ones. docs/search.md has an example."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.data.images.source import Box
from paddlex_feat.errors import FeatError, GalleryError
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.inference.results import FeatureResult
from paddlex_feat.search.adding import Added, add_images, columns_of_input
from paddlex_feat.search.answers import Answer, Hit
from paddlex_feat.search.backend import Backend, Rows
from paddlex_feat.search.calibrate import EVALUATION, Calibration, calibrate
from paddlex_feat.search.items import Item, NewItem, check_vector
from paddlex_feat.search.local import LocalBackend

AUTO = "auto"
MAX_TOPK = 10_000
MOST_CHANGED = 0.05  # share of the images; once more of them have changed, the threshold of "auto" is computed again
CALIBRATION = "calibration"  # in the gallery's meta
_ASKED = 64  # images that are looked for together


@dataclass(frozen=True)
class _Calibrated:
    """A threshold, None for none, and the version and the number of images of the gallery that it was found on."""

    version: int
    images: int
    found: Calibration | None

    def as_json(self) -> dict[str, Any]:
        return {"version": self.version, "images": self.images, "found": self.found and self.found.as_json()}

    @classmethod
    def from_json(cls, content: Any) -> _Calibrated | None:
        """That of a gallery's meta, which may hold anything."""
        if not isinstance(content, dict) or not all(type(content.get(n)) is int for n in ("version", "images")):
            return None
        found = Calibration.from_json(content.get("found"))
        whole = found is not None or content.get("found") is None
        return cls(content["version"], content["images"], found) if whole else None


class Gallery:
    """A gallery and the model of its features. Threads may share it; other processes' changes are seen at once.

    Args:
        place: path of its file, or a `Backend`.
        model: whose features the gallery has, for images as inputs; None: only features can be added and asked.

    Raises GalleryError if the file is not a gallery, or holds features of another model.
    """

    def __init__(self, place: str | Path | Backend, model: Predictor | None = None):
        self._backend: Backend = LocalBackend(Path(place)) if isinstance(place, (str, Path)) else place
        self._model = model
        self._calibrating = threading.Lock()
        self._calibration: _Calibrated | None = None
        if model is not None:
            try:
                self.require_same(model.identity)
            except BaseException:
                self._backend.close()
                raise

    @classmethod
    def create(cls, path: str | Path, model: Predictor | ModelIdentity) -> Gallery:
        """Make an empty gallery for the features of a model, or open the one of this model that is there."""
        identity = model if isinstance(model, ModelIdentity) else model.identity
        gallery = cls(LocalBackend.create(Path(path), identity), model if isinstance(model, Predictor) else None)
        if isinstance(model, ModelIdentity):
            gallery.require_same(model)
        return gallery

    @property
    def identity(self) -> ModelIdentity:
        """The model whose features the gallery has."""
        return self._backend.identity

    @property
    def where(self) -> str:
        """Path or address of the gallery."""
        return self._backend.where

    def close(self) -> None:
        """Close the file."""
        self._backend.close()

    def __enter__(self) -> Gallery:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._backend.count()

    def require_same(self, identity: ModelIdentity) -> None:
        """Raise GalleryError unless features of this model can be compared with those of the gallery."""
        if difference := self.identity.difference(identity):
            raise GalleryError(
                f"Features of this model cannot be compared with those of the gallery: {difference}.",
                where=self.where,
                fix="Use the model that the gallery was built with, or embed its images again: Index.action=rebuild.",
                code="gallery-other-model",
            )

    # Changes.

    def add(
        self,
        input: Any,
        labels: str | Sequence[str | None] | None = None,
        keys: str | Sequence[str] | None = None,
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
        return self.add_rows(columns_of_input(input, labels, keys), data, on_error, skip_unchanged)

    def add_rows(
        self,
        rows: Iterable[tuple[Any, str | None, str | None]],
        data: Any = None,
        on_error: str = "raise",
        skip_unchanged: bool = False,
    ) -> Added:
        """As `add`, for an iterator of (image, label, key)."""
        return add_images(self._backend, self._require_model(), rows, data, on_error, skip_unchanged)

    def add_items(self, items: Sequence[NewItem]) -> list[int]:
        """Add items with their features, all or none. Returns their ids."""
        return self._backend.add(items)

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
                where=self.where,
                fix="Give keys, labels or ids.",
                code="remove-nothing",
            )
        wanted = None if ids is None else set(ids)
        if keys is None and labels is None:
            return self._backend.remove(sorted(wanted or ()))
        found = self._backend.find(keys, labels)
        return self._backend.remove([item.id for item in found if wanted is None or item.id in wanted])

    def compact(self) -> None:
        """Give the space of removed images back to the disk."""
        self._backend.compact()

    def rebuild(self, model: Predictor) -> int:
        """Embed all images again with another model, from their files; all or none. Returns their number.

        Raises GalleryError if an image has no file, ImageError if one cannot be read.
        """
        version, items = self._backend.version(), self.items()
        without = [item.key for item in items if item.path is None]
        if without:
            raise GalleryError(
                f"{len(without)} images have no file, as {without[0]}.",
                where=self.where,
                fix="Remove them, or build another gallery.",
                code="rebuild-without-file",
            )
        images = [item.path if item.box is None else {"img": item.path, "box": list(item.box)} for item in items]
        results = [result.feature for result in model.predict(images)]
        if len(results) != len(items):
            what = f"{len(items)} images give {len(results)} features: files of several pages cannot be embedded again."
            raise GalleryError(what, where=self.where, fix="Build another gallery.", code="rebuild-pages")
        rows = np.stack(results) if results else np.empty((0, model.identity.dimension), np.float32)
        self._backend.rebuild(model.identity, [item.id for item in items], rows, version)
        self._model = model
        return len(items)

    def version(self) -> int:
        """A number that every change of images gives another value."""
        return self._backend.version()

    def meta(self) -> dict[str, Any]:
        """What the gallery says about itself."""
        return self._backend.meta()

    def set_meta(self, name: str, value: Any) -> None:
        """Say something about the gallery."""
        self._backend.set_meta(name, value)

    # Questions.

    def search(
        self, input: Any, topk: int = 10, threshold: float | str | None = AUTO, on_error: str = "raise"
    ) -> Generator[Answer, None, None]:
        """The nearest images of each image of the input, which is that of `Predictor.predict`.

        Args:
            input: images.
            topk: number of hits.
            threshold: below which an answer is unknown: a number, None for no threshold, "auto", see `threshold`, or
                "evaluation", see `suggested`.
            on_error: "raise" or "skip", as for `Predictor.predict`.
        """
        least = self._least(threshold)
        for results in _in_parts(self._require_model().predict(input, on_error=on_error), _ASKED):
            names = [result["input_path"] or f"input[{result.element}]" for result in results]
            boxes = [None if "box" not in result else Box(*result["box"]) for result in results]
            yield from self.answers(np.stack([r.feature for r in results]), topk, least, names, boxes)

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
        ids, scores, items = self._backend.nearest(np.ascontiguousarray(features, np.float32), topk)
        answers = []
        for number, name in enumerate(names):
            pairs = zip(ids[number].tolist(), scores[number].tolist(), strict=True)
            hits = [Hit(items[i], score) for i, score in pairs if i in items]  # else removed this very moment
            answers.append(Answer(name, hits, least, boxes[number] if boxes else None, self.identity))
        return answers

    def threshold(self) -> Calibration | None:
        """The threshold of "auto", found on the gallery, and again after changes (MOST_CHANGED).

        With too few labels for a promise it is the one that mode evaluate suggested for this model, if it did
        (`suggested`). None: there is none.
        """
        with self._calibrating:
            found = self._calibrated()
        return found if found and found.confidence else self.suggested() or found

    def _calibrated(self) -> Calibration | None:
        version, images, known = self._backend.version(), len(self), self._calibration
        if known is None:
            known = self._calibration = _Calibrated.from_json(self.meta().get(CALIBRATION))
        if known is not None:
            fresh = self._backend.fresh_since(known.version)
            gone = max(0, known.images + fresh - images)
            if fresh + gone <= MOST_CHANGED * known.images:
                return known.found
        labels = {item.id: item.label for item in self.items() if item.label is not None}
        self._calibration = _Calibrated(version, images, calibrate(self.rows(), labels))
        with suppress(GalleryError):  # a gallery that can only be read
            self.set_meta(CALIBRATION, self._calibration.as_json())
        return self._calibration.found

    def suggested(self) -> Calibration | None:
        """The threshold that mode evaluate suggested for this model, if the gallery knows it (`set_suggested`)."""
        known = self.meta().get(EVALUATION)
        if not isinstance(known, dict) or known.get("model") != self.identity.as_json():
            return None
        value = known.get("threshold")
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not -1 <= value <= 1:
            return None
        return Calibration(float(value), None, 0.0, source=EVALUATION)

    def require_suggested(self) -> Calibration:
        """As `suggested`. Raises GalleryError if the gallery knows none."""
        found = self.suggested()
        if found is None:
            raise GalleryError(
                "The gallery knows no threshold of mode evaluate for its model.",
                where=self.where,
                fix="Run mode evaluate, then Index.action=add, with the same Global.output; or give another threshold.",
                code="threshold-not-evaluated",
            )
        return found

    def set_suggested(self, threshold: float) -> None:
        """Keep the threshold that mode evaluate suggested for this model."""
        known = {"threshold": threshold, "model": self.identity.as_json()}
        if self.meta().get(EVALUATION) != known:
            self.set_meta(EVALUATION, known)

    def items(
        self,
        keys: Sequence[str] | None = None,
        labels: Sequence[str | None] | None = None,
        after: int = 0,
        limit: int = -1,
    ) -> list[Item]:
        """The images that have one of the keys, and one of the labels, by id, after an id, at most `limit`."""
        return self._backend.find(keys, labels, after, limit)

    def labels(self) -> list[tuple[str | None, int]]:
        """Each label, and how many images have it."""
        return self._backend.labels()

    def thumbnail(self, i: int) -> bytes | None:
        """A small JPEG of an image; None if the gallery has none."""
        return self._backend.thumbnail(i)

    def method(self) -> dict[str, Any]:
        """How the nearest images are found: {"method": "exact"}, or hnsw with the share of them that it finds."""
        return self._backend.method()

    def rows(self) -> Rows:
        """All ids and features, some at a time; not to be changed."""
        return self._backend.rows()

    # How it works.

    def _least(self, threshold: float | str | None) -> float | None:
        if threshold == AUTO:
            found = self.threshold()
            return None if found is None else found.threshold
        if threshold == EVALUATION:
            return self.require_suggested().threshold
        if threshold is None or (isinstance(threshold, (int, float)) and -1 <= threshold <= 1):
            return threshold
        raise GalleryError(
            f"The threshold is {threshold!r}.",
            where="threshold",
            fix="Give a cosine similarity from -1 to 1, auto, evaluation or none.",
            code="threshold-invalid",
        )

    def _require_model(self) -> Predictor:
        if self._model is None:
            raise GalleryError(
                "Images cannot be embedded: the gallery was opened without its model.",
                where=self.where,
                fix="Give Gallery(path, model) the model that it was built with.",
                code="gallery-without-model",
            )
        return self._model


def _in_parts(results: Iterable[FeatureResult], size: int) -> Iterator[list[FeatureResult]]:
    """Results, some at a time; those before an error first."""
    part: list[FeatureResult] = []
    try:
        for result in results:
            part.append(result)
            if len(part) == size:
                yield part
                part = []
    except FeatError:
        if part:
            yield part
        raise
    if part:
        yield part
