"""Galleries that PaddleX's clients have built: each is known by a key alone, and lies beside the service's own."""

from __future__ import annotations

import re
import threading
import uuid
from collections import OrderedDict

from paddlex_feat.errors import GalleryError
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.place import Place

MAX_OPEN = 16  # galleries that are kept in memory
_KEY = re.compile(r"[0-9a-f]{32}")


class ClientGalleries:
    """The galleries by key. They take features: a model would stay in memory with each.

    Args:
        place: of the service's own gallery.

    Attributes:
        numbering: held while PaddleX's number of a new image is chosen.
    """

    def __init__(self, place: Place):
        self.numbering = threading.Lock()
        self._place = place
        self._opening = threading.Lock()
        self._open: OrderedDict[str, Gallery] = OrderedDict()

    def new(self, identity: ModelIdentity) -> tuple[str, Gallery]:
        """A key, and its empty gallery for features of a model."""
        key = uuid.uuid4().hex
        with self._opening:
            return key, self._kept(key, self._place.of_client(key).create(identity))

    def of_key(self, key: str | None, identity: ModelIdentity) -> Gallery:
        """The gallery of a key. Raises GalleryError for one that does not exist, or has another model's features."""
        if key is None or not _KEY.fullmatch(key):
            raise _unknown()
        with self._opening:
            if key in self._open:
                try:
                    self._open[key].require_same(identity)
                    len(self._open[key])
                except GalleryError:  # it may have been built anew, or restored, since it was opened
                    del self._open[key]
                else:
                    self._open.move_to_end(key)
                    return self._open[key]
            try:
                gallery = self._place.of_client(key).open()
            except GalleryError as error:
                if error.code == "gallery-missing":
                    raise _unknown() from None
                raise
            gallery.require_same(identity)
            return self._kept(key, gallery)

    def forget(self) -> None:
        """Open all anew when they are asked for."""
        with self._opening:
            self._open.clear()

    def _kept(self, key: str, gallery: Gallery) -> Gallery:
        self._open[key] = gallery
        while len(self._open) > MAX_OPEN:
            self._open.popitem(last=False)  # closed when the last request lets it go
        return gallery


def _unknown() -> GalleryError:
    what = "The indexKey is not one of this service."
    return GalleryError(what, where="indexKey", fix="Give the one that build answered.", code="key-unknown")
