"""What a gallery answers: the nearest images of a query, and whether they are near enough."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from paddlex_feat.data.images.source import Box, ImageSource
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.items import Item


@dataclass(frozen=True)
class Hit:
    """An image of the gallery as part of an answer.

    Attributes:
        item: the image.
        score: cosine similarity to the query, computed in float64.
    """

    item: Item
    score: float


@dataclass(frozen=True)
class Answer:
    """What the gallery says about a query.

    Attributes:
        name: of the query: its path, or its place in the input.
        hits: the nearest images, nearest first; equal ones in order of adding.
        threshold: below which an answer is unknown; None: every answer counts.
        box: the part of the query's picture that was asked; None: all of it.
        model: whose features were compared.
    """

    name: str
    hits: list[Hit]
    threshold: float | None
    box: Box | None = None
    model: ModelIdentity | None = None

    @property
    def image(self) -> str | ImageSource | None:
        """The query's picture, or the part of it that was asked; None if it is not a file."""
        if not Path(self.name).is_file():
            return None
        return self.name if self.box is None else ImageSource(f"{self.name}[{self.box}]", self.name, box=self.box)

    @property
    def known(self) -> bool:
        """Whether the nearest image is near enough to be an answer."""
        return bool(self.hits) and (self.threshold is None or self.hits[0].score >= self.threshold)

    @property
    def label(self) -> str | None:
        """Label of the nearest image; None if the query is unknown, or that image has no label."""
        return self.hits[0].item.label if self.known else None

    def as_json(self) -> dict[str, Any]:
        """Plain data."""
        hits = [{**hit.item.as_json(), "score": hit.score} for hit in self.hits]
        box = None if self.box is None else list(self.box)
        model = None if self.model is None else self.model.as_json()
        return {
            "query": self.name,
            "box": box,
            "known": self.known,
            "label": self.label,
            "threshold": self.threshold,
            "hits": hits,
            "model": model,
        }
