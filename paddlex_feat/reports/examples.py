"""Queries with their nearest gallery images and their first match, for pages and pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation.evaluator import Evaluation
from paddlex_feat.reports.images import small_image

NEIGHBOURS = 5
SIDE = 128  # the square in pixels that an image is fitted into


@dataclass(frozen=True)
class Example:
    """One image with its label and similarity.

    Attributes:
        image: uint8 [h, w, 3], RGB, at most `SIDE` high and wide; None if it can no longer be decoded.
        path: as in its list.
        right: whether it has the class of the query; None for a query itself.
        similarity: to the query; None for a query itself.
        rank: place among the gallery images, from 1; 0 for a query itself.
        name: of the class; "" for its number.
    """

    image: np.ndarray | None
    path: str
    label: int
    right: bool | None = None
    similarity: float | None = None
    rank: int = 0
    name: str = ""

    @property
    def title(self) -> str:
        """The name of the class, else its number."""
        return self.name or str(self.label)

    def text(self, named: bool = True) -> str:
        """The class by name or number; for a gallery image also whether it is right, and its similarity."""
        label = shortened(self.title if named else str(self.label), 9)
        if self.right is None:
            return label
        return f"{'✓' if self.right else '✗'} {label} ({number(self.similarity, 2)})"


class Examples:
    """Makes the examples of an evaluation; every image is decoded once."""

    def __init__(self, evaluation: Evaluation, query: ImageList, gallery: ImageList):
        self._evaluation = evaluation
        self._query, self._gallery = query, gallery
        self._images: dict[str, np.ndarray | None] = {}

    def query(self, q: int) -> Example:
        """The query itself."""
        label = self._query.labels[q]
        return Example(self._image(self._query, q), self._query.paths[q], label, name=self._query.names.get(label, ""))

    def neighbours(self, q: int, count: int = NEIGHBOURS) -> list[Example]:
        """Its nearest gallery images, nearest first; fewer if the gallery is smaller."""
        near = self._evaluation.ranking.nearest[q, :count].tolist()
        similarity = self._evaluation.ranking.similarity[q].tolist()
        return [self._of(q, g, similarity[i], i + 1) for i, g in enumerate(near) if g >= 0]

    def first_match(self, q: int) -> Example:
        """The nearest gallery image of the class of a matched query, with its rank."""
        ranking = self._evaluation.ranking
        return self._of(q, int(ranking.first[q]), float(ranking.first_similarity[q]), int(ranking.first_match[q]))

    def _of(self, q: int, g: int, similarity: float, rank: int) -> Example:
        label = self._gallery.labels[g]
        right = label == self._query.labels[q]
        name = self._gallery.names.get(label, "")
        return Example(self._image(self._gallery, g), self._gallery.paths[g], label, right, similarity, rank, name)

    def _image(self, records: ImageList, index: int) -> np.ndarray | None:
        file = records.files()[index]
        if file not in self._images:
            self._images[file] = small_image(file, SIDE, SIDE)
        return self._images[file]


def shortened(text: str, length: int) -> str:
    """The text in at most `length` characters, with its middle replaced by an ellipsis."""
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[head + 1 - length :]}"


def number(value: float | None, places: int) -> str:
    """The number with so many decimal places, without a sign if it rounds to 0; "" for None."""
    return "" if value is None else f"{round(value, places) + 0.0:.{places}f}"
