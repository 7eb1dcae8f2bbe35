"""Exact dot products of unit features, in whatever order a matrix product adds. NumPy only.

Components are rounded to multiples of 2**-26. The product of two of them is a multiple of 2**-52, and by the
Cauchy-Schwarz inequality no partial sum of a dot product exceeds the product of the two lengths, which is below 2.
The 53 bits of a float64 hold every such number, so a float64 product rounds nowhere: its result does not depend on the
order of summation, the block sizes, the number of threads, or the matrix library.
"""

from __future__ import annotations

import math

import numpy as np

from paddlex_feat.errors import EvaluationError

MAX_DIM = 2**13  # components of a feature
_GRID_BITS = 26  # components are multiples of 2**-26
_UNIT_ROUNDOFF = 2.0**-24  # of float32
_LENGTH_TOLERANCE = 2.0**-10  # of a unit row
_CHUNK_VALUES = 2**18  # rounded at a time: 1 MiB, which a cache holds


def require_unit_rows(rows: np.ndarray, name: str) -> None:
    """Check that every row has length 1, or 0, as the feature of a network that outputs zeros has.

    Args:
        rows: float32 [N, D], an array or a memory-mapped file; read in chunks.
        name: the list that the rows belong to, for the error.

    Raises:
        EvaluationError: If a row holds NaN or infinity ("features-not-finite"), or has another length
            ("features-not-unit").
    """
    step = _chunk_rows(rows)
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        lengths = np.sqrt(np.einsum("nd,nd->n", part, part, dtype=np.float64))
        if not np.isfinite(lengths).all():
            row = start + int(np.argmin(np.isfinite(lengths)))
            raise EvaluationError(
                "Features are not finite numbers.",
                where=f"row {row + 1} of the {name}",
                fix="The weights are damaged, or training diverged.",
                code="features-not-finite",
            )
        unit = (abs(lengths - 1) <= _LENGTH_TOLERANCE) | (lengths == 0)
        if not unit.all():
            row = int(np.argmin(unit))
            raise EvaluationError(
                f"Features must have length 1, not {lengths[row]:.6g}.",
                where=f"row {start + row + 1} of the {name}",
                fix="Divide each feature by its Euclidean length.",
                code="features-not-unit",
            )


def take_rounded(rows: np.ndarray, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Copy some rows, with components rounded to multiples of 2**-26, which float32 holds exactly up to 1.

    Args:
        rows: float32 [N, D], unit rows; not changed.
        indices: integers [n].
        out: float32 [at least n, D], to be filled instead of a new array.

    Returns:
        float32 [n, D], the first rows of `out` if it is given.
    """
    out = np.empty((len(indices), rows.shape[1]), np.float32) if out is None else out[: len(indices)]
    step = _chunk_rows(rows)
    for start in range(0, len(out), step):
        part = out[start : start + step]
        np.take(rows, indices[start : start + step], axis=0, out=part, mode="clip")  # the default mode copies twice
        part *= 2.0**_GRID_BITS
        np.rint(part, out=part)
        part *= 2.0**-_GRID_BITS
    return out


def exact_dot(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Dot products of all rows of x with all rows of y, without any rounding error.

    Args:
        x: float32 or float64 [n, D], rows from `take_rounded`.
        y: the same, [m, D], or one row, [D].

    Returns:
        float64 [n, m], or [n].
    """
    return x.astype(np.float64, copy=False) @ y.astype(np.float64, copy=False).T


def error_bound(dim: int) -> float:
    """Largest difference between the float32 and the exact dot product of two rounded rows, in any order of summation.

    gamma_D |x| |y| with gamma_D = D u / (1 - D u) (Higham, Accuracy and Stability of Numerical Algorithms, 2nd edition,
    section 3.1). The small addend covers products that underflow.

    Args:
        dim: D, components of a row.
    """
    gamma = dim * _UNIT_ROUNDOFF / (1 - dim * _UNIT_ROUNDOFF)
    longest = 1 + _LENGTH_TOLERANCE + math.sqrt(dim) * 2.0 ** -(_GRID_BITS + 1)
    return gamma * longest**2 + dim * 2.0**-126


def _chunk_rows(rows: np.ndarray) -> int:
    return max(1, _CHUNK_VALUES // int(rows.shape[1]))
