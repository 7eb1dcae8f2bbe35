"""Where a gallery is: a file of this machine, or a collection of a Milvus server."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.inference.predictor import Predictor
from paddlex_feat.search.backend import Backend
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.local import LocalBackend


@dataclass(frozen=True)
class Place:
    """A place.

    Attributes:
        path: of the file.
        url: of a Milvus server, whose collection is taken instead of the file; None: the file.
        collection: of the server.
        token: of the server.
        approximate: search by a graph; of files alone.
    """

    path: Path
    url: str | None = None
    collection: str = "images"
    token: str | None = field(default=None, repr=False)
    approximate: bool = False

    def __str__(self) -> str:
        return str(self.path) if self.url is None else f"{self.collection} on {self.url}"

    def open(self, model: Predictor | None = None) -> Gallery:
        """The gallery that is there. Raises GalleryError if there is none, or one of another model."""
        return Gallery(self._backend(), model)

    def create(self, model: Predictor | ModelIdentity) -> Gallery:
        """The gallery that is there, or an empty one. Raises GalleryError if it is of another model.

        model: whose features it has; by its identity alone, the gallery takes features and no images.
        """
        identity, embeds = (model, None) if isinstance(model, ModelIdentity) else (model.identity, model)
        if self.url is None:
            LocalBackend.create(self.path, identity).close()
            gallery = self.open(embeds)
        else:
            from paddlex_feat.search.milvus import MilvusBackend

            gallery = Gallery(MilvusBackend.create(self.url, self.collection, identity, self.token), embeds)
        gallery.require_same(identity)
        return gallery

    def of_client(self, key: str) -> Place:
        """The place of a client's own gallery, beside this one."""
        folder = self.path.with_name(f"{self.path.name}.indexes")
        return replace(self, path=folder / f"{key}.gallery", collection=f"{self.collection}_{key}", approximate=False)

    def _backend(self) -> Backend:
        if self.url is None:
            return LocalBackend(self.path, self.approximate)
        from paddlex_feat.search.milvus import MilvusBackend

        return MilvusBackend(self.url, self.collection, self.token)
