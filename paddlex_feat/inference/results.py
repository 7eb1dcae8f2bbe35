"""One result per image."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np

from paddlex_feat import hub
from paddlex_feat.files import write_json


class FeatureResult(dict[str, Any]):
    """`{"input_path": str | None, "feature": [512 floats]}` of one image.

    Attributes:
        feature: the same as float32 [512], of unit length.
        json: `{"res": {"input_path": …, "feature": […]}}`, plain Python values.
    """

    def __init__(self, input_path: str | None, feature: np.ndarray, file_stem: str, number: int):
        super().__init__(input_path=input_path, feature=feature.tolist())
        self.feature = feature
        self._file_stem = file_stem
        self._number = number

    @property
    def json(self) -> dict[str, Any]:
        return {"res": dict(self)}

    def print(self, format_json: bool = True, indent: int = 4, ensure_ascii: bool = False) -> None:
        """Print to standard output, as JSON or as a Python dict on one line."""
        print(json.dumps(self.json, indent=indent, ensure_ascii=ensure_ascii) if format_json else self.json)

    def save_to_json(self, save_path: str | Path, indent: int = 4, ensure_ascii: bool = False) -> Path:
        """Write `{"input_path": …, "feature": […]}` and return the file's path.

        A path that ends in .json is the file; the n-th result of the same `predict` call goes to
        NAME_n.json beside it. Any other path is a folder, the file in it `<input's stem>_res.json`,
        with a number where inputs of the same call share the stem. So no result of a call
        overwrites another.
        """
        path = Path(save_path)
        if path.suffix.lower() != ".json":
            path = path / f"{self._file_stem}_res.json"
        elif self._number > 1:
            path = path.with_name(f"{path.stem}_{self._number}{path.suffix}")
        write_json(path, dict(self), indent, ensure_ascii)
        return path

    def save_all(self, save_path: str | Path) -> Path:
        """The same as `save_to_json`."""
        return self.save_to_json(save_path)


class FileStems:
    """Stems for the results of one `predict` call.

    An input's own stem, numbered where an earlier input of the call has it: the same call names the
    same files again. Arrays have no name, so theirs holds the time of the call.
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._next: dict[str, int] = {}
        self._array = f"array_{time.time_ns()}"

    def of(self, input_path: str | None) -> str:
        """A stem that this object has not given before."""
        path = urlparse(input_path).path if input_path and hub.is_url(input_path) else input_path
        wanted = Path(path).stem if path else self._array
        stem = wanted
        while stem in self._taken:
            number = self._next.get(wanted, 2)
            self._next[wanted] = number + 1
            stem = f"{wanted}_{number}"
        self._taken.add(stem)
        return stem
