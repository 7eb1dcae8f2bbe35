"""Which model features come from: features of different models cannot be compared, however similar these are."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from paddlex_feat.errors import WeightsError
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.inference.model_info import GRAPHS, PREFIX, read_info


@dataclass(frozen=True)
class ModelIdentity:
    """What makes the features of two models comparable.

    Attributes:
        name: of the model, as in inference.yml.
        digest: of the graph and the parameters, SHA-256 in hexadecimal digits.
        preprocess: how images are made ready, as in inference.yml, and the predictor's ways that change features.
        dimension: numbers of a feature.
    """

    name: str
    digest: str
    preprocess: str
    dimension: int

    def as_json(self) -> dict[str, Any]:
        """Plain data, for files."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Any) -> ModelIdentity | None:
        """The identity that a file has; None if it has none."""
        try:
            identity = cls(*(content[key] for key in ("name", "digest", "preprocess", "dimension")))
        except (KeyError, TypeError, IndexError):
            return None
        texts = (identity.name, identity.digest, identity.preprocess)
        known = all(isinstance(text, str) for text in texts) and isinstance(identity.dimension, int)
        return identity if known and 0 < identity.dimension <= 2**16 else None

    def difference(self, other: ModelIdentity) -> str:
        """Why features of the other model cannot be compared with those of this one; "" if they can."""
        if self == other:
            return ""
        for what, mine, others in (
            ("models", self.name, other.name),
            ("dimensions", self.dimension, other.dimension),
            ("pre-processing", self.preprocess, other.preprocess),
        ):
            if mine != others:
                return f"their {what} differ: {mine} and {others}"
        return f"their weights differ: {self.name} {self.digest[:12]} and {other.name} {other.digest[:12]}"


def identity_of(folder: Path, dimension: int, mirror: bool = False, fast_decode: bool = False) -> ModelIdentity:
    """The identity of an inference directory.

    That of Paddle's graph and parameters, which the other forms are made of; where there are none, of the other forms.

    Args:
        folder: inference directory.
        dimension: numbers of a feature.
        mirror: whether features of mirror images are averaged in.
        fast_decode: whether large JPEGs are decoded at a reduced size.

    Raises WeightsError if it cannot be read.
    """
    info = read_info(folder)
    graph = next((folder / name for name in GRAPHS if (folder / name).is_file()), None)
    parameters = folder / f"{PREFIX}.pdiparams"
    files = [graph, parameters] if graph is not None and parameters.is_file() else _other_forms(folder)
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    except OSError as error:
        raise WeightsError(
            f"The inference model cannot be read ({error.strerror}).",
            where=str(folder),
            fix="Export it again.",
            code="model-unreadable",
        ) from error
    ways = {"mirror": mirror, "fast_decode": fast_decode, "unit": info.normalise_features}
    how = {**asdict(info.preprocess), **{name: True for name, used in ways.items() if used}}
    return ModelIdentity(info.name, digest.hexdigest(), json.dumps(how, sort_keys=True, default=str), dimension)


def stamps_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Number, size and time of change of each file of an inference directory: others once a file is replaced."""
    found: dict[str, tuple[int, ...]] = {}
    with suppress(OSError):  # gone, which is another state as well
        for file in folder.iterdir():
            if file.stem == PREFIX:
                status = file.stat()
                found[file.name] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _other_forms(folder: Path) -> list[Path]:
    return sorted(f for f in folder.iterdir() if f.is_file() and f.stem == PREFIX and f.suffix not in (".yml", ".json"))
