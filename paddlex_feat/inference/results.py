"""One result per image."""

from __future__ import annotations

import builtins
import json
import os
import re
import time
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from paddlex_feat.errors import OutputError
from paddlex_feat.fileio.atomic import write_json
from paddlex_feat.fileio.paths import expand_home, fault
from paddlex_feat.hub.urls import is_url

# What some file system refuses: Windows' reserved characters, control characters, surrogates that are no byte.
_FORBIDDEN = re.compile(r'[<>:"/\\|?*\x00-\x1f\x7f\ud800-\udc7f\udd00-\udfff]')
_MAX_STEM_BYTES = 200  # bytes of a stem; with its number and `_res.json` it fits into the 255 of most file systems


class FeatureResult(dict[str, Any]):
    """`{"input_path": str | None, "feature": [512 floats]}` of one image.

    With "page_index" if it is one of pages, and "box", x1, y1, x2, y2 in pixels, if it is a part of its picture.

    Attributes:
        feature: the same as float32 [512], of unit length.
        element: number of the element of the input's list or iterator that it comes from; 0 without one.
        json: `{"res": {"input_path": …, "feature": […]}}`, plain Python values.
        str: the same, PaddleX's name.
    """

    def __init__(
        self,
        input_path: str | None,
        feature: np.ndarray,
        file_stem: str,
        number: int,
        page_index: int | None = None,
        box: Sequence[float] | None = None,
        element: int = 0,
    ):
        page = {} if page_index is None else {"page_index": page_index}
        part = {} if box is None else {"box": list(box)}
        super().__init__(input_path=input_path, **page, **part, feature=feature.tolist())
        self.feature = feature
        self.element = element
        self._file_stem = file_stem
        self._number = number

    @property
    def json(self) -> dict[builtins.str, Any]:
        """`{"res": {"input_path": …, "feature": […]}}`, plain Python values; with "page_index" for one of pages."""
        return {"res": dict(self)}

    @property
    def str(self) -> dict[builtins.str, Any]:
        """The same as `json`, by PaddleX's name."""
        return self.json

    def print(
        self,
        format_json: bool = True,
        indent: int = 4,
        ensure_ascii: bool = False,
        *,
        json_format: bool | None = None,
    ) -> None:
        """Print to standard output, as JSON or as a Python dict on one line.

        `json_format` is PaddleX's name of `format_json`.
        """
        wanted = format_json if json_format is None else json_format
        text = json.dumps(self.json, indent=indent, ensure_ascii=ensure_ascii) if wanted else repr(self.json)
        # A file name that is not UTF-8 holds lone surrogates, which \\udcff writes in JSON's own way.
        print(text.encode("utf-8", errors="backslashreplace").decode("utf-8"))

    def save_to_json(self, save_path: builtins.str | Path, indent: int = 4, ensure_ascii: bool = False) -> Path:
        """Write `{"input_path": …, "feature": […]}` and return the file's path.

        A path that ends in .json and is not a folder is the file; the n-th result of the same `predict` call is
        written to NAME_n.json in the same folder. Any other path is a folder, and the file is `<name>_res.json`, named
        by `OutputNames`. So no result of a call overwrites another. `~` is the home folder. Raises OutputError, also
        for a path with a variable or of Windows that does not exist.
        """
        path = output_path(save_path)
        if path.suffix.lower() != ".json" or os.path.isdir(path):  # noqa: PTH112 - false for a name that is too long
            path = path / f"{self._file_stem}_res.json"
        elif self._number > 1:
            path = path.with_name(f"{path.stem}_{self._number}{path.suffix}")
        write_json(path, dict(self), indent, ensure_ascii, fsync_dir=False)  # else a third fewer a second
        return path

    def save_all(self, save_path: builtins.str | Path) -> Path:
        """The same as `save_to_json`."""
        return self.save_to_json(save_path)


def output_path(given: str | Path) -> Path:
    """A path of a caller that is about to be written, with its home folder expanded.

    Raises OutputError for one with a variable, or of Windows, that does not exist.
    """
    path = expand_home(os.fspath(given))
    wrong = fault(path, written=True)
    if wrong:
        raise OutputError(
            f"Cannot write: {wrong}.",
            where=str(given),
            fix="Give a complete path of this system.",
            code="output-path-invalid",
        )
    return Path(path)


class Failed(tuple[builtins.str, builtins.str]):
    """(name, what is wrong) of an input that could not be used.

    Attributes:
        fix: what to do about it.
        element: as of `FeatureResult`.
    """

    fix: builtins.str
    element: int

    def __new__(
        cls, name: builtins.str, what: builtins.str, fix: builtins.str | None = None, element: int = 0
    ) -> Failed:
        """The pair, with `fix` and `element`."""
        pair = super().__new__(cls, (name, what))
        pair.fix, pair.element = fix or "", element
        return pair

    def __getnewargs__(self) -> tuple[builtins.str | int, ...]:  # to copy and pickle it
        return *self, self.fix, self.element


class OutputNames:
    """File names, without suffix, for the results of one `predict` call; the same inputs get the same names again.

    A name is the stem of the input's path or URL, with `_<page_index>` for one of several pages;
    `_` replaces characters that some file system forbids, and at most 200 bytes are kept. If an
    earlier input of the call has the name, `_2`, `_3`, … is appended; upper and lower case count as
    equal, as on some file systems. An input without a path is
    `array_<time of the call>`, numbered, so that arrays of several calls do not collide.

    Every name of a path is remembered, about 200 bytes each; names of arrays are not.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        self._array = f"array_{time.time_ns()}"
        self._arrays = 0

    def next(self, input_path: str | None, page_index: int | None = None) -> str:
        """A name that this object has not returned before."""
        path = urlparse(input_path).path if input_path and is_url(input_path) else input_path
        own = Path(path).stem if path else ""
        if not own:
            self._arrays += 1
            return self._array if self._arrays == 1 else f"{self._array}_{self._arrays}"
        return self._unique(own if page_index is None else f"{own}_{page_index}")

    def _unique(self, wanted: str) -> str:
        wanted = _FORBIDDEN.sub("_", wanted)
        if wanted.startswith(self._array):
            wanted = f"_{wanted}"
        while len(wanted.encode("utf-8", "surrogatepass")) > _MAX_STEM_BYTES:
            wanted = wanted[:-1]
        stem = wanted
        while _folded(stem) in self._taken:
            number = self._next.get(_folded(wanted), 2)
            self._next[_folded(wanted)] = number + 1
            stem = f"{wanted}_{number}"
        self._taken.add(_folded(stem))
        return stem


def _folded(stem: str) -> str:
    """The same for names that some file system takes for one: without regard to case and to how accents are made."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())
