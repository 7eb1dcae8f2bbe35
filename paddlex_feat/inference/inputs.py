"""What `predict` accepts, as one stream of images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from paddlex_feat import hub
from paddlex_feat.errors import ImageError
from paddlex_feat.pipeline.decode import SUFFIXES, read_rgb

ACCEPTED = "an image file, a folder, a URL, a NumPy array, a dict {'img': …}, or a list of these"


@dataclass(frozen=True)
class Item:
    """One image: where it comes from (None for an array) and how to get its pixels."""

    input_path: str | None
    source: Any

    def read(self) -> np.ndarray:
        """uint8 [H, W, 3], RGB. Raises ImageError."""
        if isinstance(self.source, np.ndarray):
            return _array_to_rgb(self.source)
        path = self.source
        if hub.is_url(path):
            fix = "Check the address, or download the image and give its path."
            path = hub.fetch(path, "predict_input", fix, refresh=True)
        return read_rgb(path)


def _array_to_rgb(array: np.ndarray) -> np.ndarray:
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    codes = {1: cv2.COLOR_GRAY2RGB, 3: cv2.COLOR_BGR2RGB, 4: cv2.COLOR_BGRA2RGB}
    if array.dtype != np.uint8 or channels not in codes or not array.size:
        raise ImageError(
            f"An array of shape {array.shape} and type {array.dtype} is no image.",
            where="predict(input)",
            fix="Give uint8 [H, W, 3] in BGR order, [H, W, 4] in BGRA order, or [H, W] in grey.",
        )
    return cv2.cvtColor(np.ascontiguousarray(array), codes[channels])


def items(source: Any) -> Iterator[Item]:
    """All images of an input, in order; folders recursively, sorted by path.

    Raises ImageError for an input that is nothing of ACCEPTED, a path that does not exist or a
    folder without images.
    """
    if isinstance(source, np.ndarray):
        yield Item(None, source)
    elif isinstance(source, (str, Path)):
        yield from _path_items(str(source))
    elif isinstance(source, dict):
        if "img" not in source:
            raise ImageError(
                f"A dict input needs the key 'img'; it has {sorted(map(str, source))}.", where="predict(input)"
            )
        yield from items(source["img"])
    elif isinstance(source, Iterable) and not isinstance(source, (bytes, bytearray)):
        for element in source:
            yield from items(element)
    else:
        raise ImageError(
            f"An input of type {type(source).__name__} is not understood.",
            where="predict(input)",
            fix=f"Give {ACCEPTED}.",
        )


def _path_items(path: str) -> Iterator[Item]:
    if hub.is_url(path):
        yield Item(path, path)
        return
    if not path or not Path(path).exists():
        raise ImageError("The input does not exist.", where=repr(path), fix=f"Give {ACCEPTED}.")
    if not Path(path).is_dir():
        yield Item(path, path)
        return
    files = sorted(str(p) for p in Path(path).rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise ImageError("The folder holds no images.", where=path, fix=f"Looked for {', '.join(sorted(SUFFIXES))}.")
    for file in files:
        yield Item(file, file)
