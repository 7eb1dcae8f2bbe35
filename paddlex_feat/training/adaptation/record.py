"""adaptation.npz beside adapted weights: the map, and how to cut features to fewer numbers.

Arrays of the file: `mean` float32 [D] and `matrix` float32 [K, D], the map y = matrix @ (x - mean) of the start's
features, largest variance first; `variance` float32 [K], of each y over the training images; `folded`, whether the
weights give y already, or still x; `weights`, the SHA-256 of the weight file as 32 bytes.
"""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlex_feat.errors import WeightsError
from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.fileio.npz import NpzWriter
from paddlex_feat.training.adaptation.maps import AffineMap, evened

NAME = "adaptation.npz"


@dataclass(frozen=True)
class Record:
    """Content of adaptation.npz.

    Attributes:
        map: of the start's features; its first outputs matter most.
        variance: of each output over the training images, float [K].
        folded: whether the weights beside it give the map's outputs.
        weights: SHA-256 of the weight file as hexadecimal text, "" if there is none.
    """

    map: AffineMap
    variance: np.ndarray
    folded: bool
    weights: str = ""

    def cut(self, dimension: int) -> AffineMap:
        """Return the map of the features of the weights beside it to their `dimension` leading directions."""
        if not self.folded:
            return self.leading(dimension)
        dim = len(self.map.mean)
        return AffineMap(np.zeros(dim), evened(self.variance, dimension)[:, None] * np.eye(dimension, dim))

    def leading(self, dimension: int) -> AffineMap:
        """Return the map of the start's features to the `dimension` leading outputs."""
        return AffineMap(self.map.mean, evened(self.variance, dimension)[:, None] * self.map.matrix[:dimension])


def write(path: Path, record: Record) -> None:
    """Write adaptation.npz; the same record gives the same bytes. Raises OutputError."""
    arrays = {
        "mean": record.map.mean.astype(np.float32),
        "matrix": record.map.matrix.astype(np.float32),
        "variance": record.variance.astype(np.float32),
        "folded": np.array(record.folded),
        "weights": np.frombuffer(bytes.fromhex(record.weights), np.uint8),
    }
    with atomic_path(path) as temporary, NpzWriter(temporary) as archive:
        for name, values in arrays.items():
            archive.write(name, values.dtype, values.shape, [values.tobytes()])


def read(path: Path) -> Record:
    """Read adaptation.npz. Raises WeightsError for a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > path.stat().st_size:
                raise ValueError("compressed members")  # which could be of any size
        with np.load(path, allow_pickle=False) as arrays:
            mean, matrix, variance = (arrays[name].astype(np.float64) for name in ("mean", "matrix", "variance"))
            folded, weights = bool(arrays["folded"]), arrays["weights"].astype(np.uint8).tobytes().hex()
        if matrix.shape != (len(variance), len(mean)) or not (np.isfinite(matrix).all() and np.isfinite(mean).all()):
            raise ValueError("shapes or numbers")
    except Exception as error:  # a damaged archive can raise nearly anything
        raise WeightsError(
            f"The file is not a valid {NAME} ({type(error).__name__}: {str(error)[:200]}).",
            where=str(path),
            fix="Remove it: the directions of fewer numbers are then fitted to the training images again.",
            code="adaptation-damaged",
        ) from error
    return Record(AffineMap(mean, matrix), variance, folded, weights)
