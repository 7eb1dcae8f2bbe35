"""The images of a gallery, and what they must be to be added."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from paddlex_feat.data.images.source import Box
from paddlex_feat.errors import GalleryError

MAX_TEXT = 4096  # characters of a key or a label
MAX_DATA = 65536  # characters of a user's JSON
MAX_DEPTH = 32  # levels of lists and dicts in it


@dataclass(frozen=True)
class Item:
    """One image of a gallery.

    Attributes:
        id: given by the gallery, from 1 in order of adding; never given twice.
        key: unique name, the path unless another is given.
        label: name of what it shows; None: none.
        path: of the image's file; None for images that were not files.
        box: the part of the picture that is meant; None: all of it.
        data: of the user, a value of JSON; None: none.
        state: size and time of change of the file when it was added, by which a changed file is known.
        added: seconds since 1970.
    """

    id: int
    key: str
    label: str | None = None
    path: str | None = None
    box: Box | None = None
    data: Any = None
    state: str | None = None
    added: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Plain data, without what is only for the gallery itself."""
        box = None if self.box is None else list(self.box)
        return {"id": self.id, "key": self.key, "label": self.label, "path": self.path, "box": box, "data": self.data}


@dataclass(frozen=True)
class NewItem:
    """An image that is added, or replaces the one of the same key. The attributes are those of `Item`.

    Attributes:
        vector: feature of unit length, float32 [D].
        thumbnail: a small JPEG; None: none.
    """

    key: str
    vector: np.ndarray
    label: str | None = None
    path: str | None = None
    box: Box | None = None
    data: Any = None
    state: str | None = None
    thumbnail: bytes | None = None


def texts_of(item: NewItem, dimension: int) -> tuple[str | None, str | None]:
    """Box and data of an item as texts. Raises GalleryError for what a gallery does not take."""
    for name, text in (("key", item.key), ("label", item.label), ("path", item.path)):
        if text is None and name != "key":
            continue
        if problem := text_problem(text):
            raise GalleryError(
                f"The {name} of an image cannot be kept: {problem}.",
                where=str(item.key)[:200],
                fix=f"Give another {name}.",
                code="item-text",
            )
    check_vector(item.vector, dimension, item.key)
    if _is_deep(item.data):
        what = f"The data of an image is nested more than {MAX_DEPTH} levels deep."
        raise GalleryError(what, where=item.key, fix="Keep it elsewhere, by the key.", code="item-data")
    try:
        data = None if item.data is None else json.dumps(item.data, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        what = f"The data of an image is not a value of JSON ({error})."
        raise GalleryError(
            what, where=item.key, fix="Give texts, numbers, lists and dicts.", code="item-data"
        ) from None
    if data is not None and (len(data) > MAX_DATA or not _is_text(data)):
        what = f"The data of an image has more than {MAX_DATA} characters, or is not text."
        raise GalleryError(what, where=item.key, fix="Keep it elsewhere, by the key.", code="item-data")
    return None if item.box is None else json.dumps(list(item.box)), data


def text_problem(text: Any) -> str:
    """Why a value cannot be a key, label or path; "" if it can."""
    if isinstance(text, str) and 0 < len(text) <= MAX_TEXT and "\0" not in text and _is_text(text):
        return ""
    return f"it is not a text of 1 to {MAX_TEXT} characters: {str(text)[:80]!r}"


def _is_deep(data: Any, level: int = 0) -> bool:
    if level > MAX_DEPTH:
        return True
    inside = data.values() if isinstance(data, dict) else data if isinstance(data, (list, tuple)) else ()
    return any(_is_deep(each, level + 1) for each in inside)


def check_vector(vector: np.ndarray, dimension: int, where: str) -> None:
    """Raise GalleryError unless a feature has these many finite numbers, and unit length."""
    problem = ""
    if np.shape(vector) != (dimension,):
        problem = f"it has the shape {np.shape(vector)}, not {dimension} numbers"
    elif not np.isfinite(vector).all():
        problem = "it is not finite"
    elif abs(float(np.linalg.norm(np.asarray(vector, np.float64))) - 1) > 1e-3:
        problem = "it does not have unit length"
    if problem:
        raise GalleryError(
            f"The feature cannot be in this gallery: {problem}.",
            where=where,
            fix="Compute it with the model of the gallery.",
            code="vector-unusable",
        )


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a file name that is not UTF-8
        return False
    return True
