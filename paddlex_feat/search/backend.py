"""Where the images of a gallery are, and who finds the nearest: what `Gallery` needs of a place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.items import Item, NewItem

Rows = list[tuple[np.ndarray, np.ndarray]]  # ids, int64 [N], and features, float32 [N, D], in pieces


class Backend(Protocol):
    """A place. Threads may share it. All methods raise GalleryError.

    Attributes:
        where: its path or address, for errors.
        identity: of the model whose features it has.
    """

    where: str
    identity: ModelIdentity

    def close(self) -> None:
        """Let it go."""

    def version(self) -> int:
        """A number that every change of images gives another value."""

    def fresh_since(self, version: int) -> int:
        """How many images were added or replaced since; all of them where only that is known."""

    def meta(self) -> dict[str, Any]:
        """What the gallery says about itself: values of JSON by name."""

    def set_meta(self, name: str, value: Any) -> None:
        """Say something about the gallery."""

    def count(self) -> int:
        """Number of images. Raises GalleryError of the code gallery-rebuilt if their features are another model's."""

    def add(self, items: Sequence[NewItem]) -> list[int]:
        """Add images, or replace those of the same keys. Returns their ids."""

    def remove(self, ids: Sequence[int]) -> int:
        """Remove the images of these ids. Returns how many there were."""

    def find(
        self, keys: Sequence[str] | None, labels: Sequence[str | None] | None, after: int = 0, limit: int = -1
    ) -> list[Item]:
        """The images that have one of the keys, and one of the labels, by id, after an id, at most `limit`."""

    def labels(self) -> list[tuple[str | None, int]]:
        """Each label, and how many images have it."""

    def states(self) -> dict[str, tuple[int, str | None, str | None]]:
        """Id, label and state by key, of all images."""

    def thumbnail(self, i: int) -> bytes | None:
        """The small JPEG of an image."""

    def nearest(self, features: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, dict[int, Item]]:
        """The k nearest of each feature, float32 [Q, D]: ids, int64 [Q, K], similarities, float64 [Q, K], images."""

    def method(self) -> dict[str, Any]:
        """How it searches, for results."""

    def rows(self) -> Rows:
        """All features; not to be changed."""

    def rebuild(self, model: ModelIdentity, ids: Sequence[int], vectors: np.ndarray, version: int) -> None:
        """Give all images features of another model, float32 [N, D]; none if there has been a change since `version`.

        Raises GalleryError in that case.
        """

    def compact(self) -> None:
        """Give the space of removed images back."""
