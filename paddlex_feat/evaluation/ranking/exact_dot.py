"""Dot products of float32 features: fast with a bound of the error, or exact in any order. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddlex_feat.errors import EvaluationError

MOST_DIM = 2**13  # components of a feature
_GRIDS = (2.0**18, 2.0**38, 2.0**58)  # reciprocals of the units of a feature's three parts
_ROWS_AT_A_TIME = 8192


@dataclass(frozen=True)
class Features:
    """Rows that are divided by powers of two, so that none is longer than sqrt(2).

    Attributes:
        rows: float32 [N, D], an array or a memory-mapped file; not copied.
        exponents: int [N, 1] or [1, 1], of the powers of two.
        longest: length of the longest row after the division.

    Raises EvaluationError for rows that are not finite numbers.
    """

    rows: np.ndarray
    exponents: np.ndarray
    longest: float

    @classmethod
    def each(cls, rows: np.ndarray, what: str) -> Features:
        """Every row by a power of its own: for queries, whose rankings it does not change."""
        return cls._of(rows, lengths := _lengths(rows, what), _exponents(lengths))

    @classmethod
    def together(cls, rows: np.ndarray, what: str) -> Features:
        """All rows by the power that the longest needs: for a gallery, whose order it does not change."""
        return cls._of(rows, lengths := _lengths(rows, what), _exponents(lengths.max(initial=0, keepdims=True)))

    @classmethod
    def _of(cls, rows: np.ndarray, lengths: np.ndarray, exponents: np.ndarray) -> Features:
        return cls(rows, exponents[:, None], float(np.ldexp(lengths, -exponents).max(initial=0)))

    def take(self, indices: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Some rows, divided: float32 [n, D], the first rows of `out` if it is given."""
        out = np.empty((len(indices), self.rows.shape[1]), np.float32) if out is None else out[: len(indices)]
        np.take(self.rows, indices, axis=0, out=out, mode="clip")  # the default mode would go through a copy
        exponents = self.exponents[indices] if len(self.exponents) > 1 else self.exponents
        return np.ldexp(out, -exponents, out=out) if exponents.any() else out


def _lengths(rows: np.ndarray, what: str) -> np.ndarray:
    """Euclidean lengths, float64 [N]; `what` tells in an error whose rows they are."""
    lengths = np.zeros(len(rows))
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        part = rows[start : start + _ROWS_AT_A_TIME]
        lengths[start : start + len(part)] = np.sqrt(np.einsum("nd,nd->n", part, part, dtype=np.float64))
    if not np.isfinite(lengths).all():
        raise EvaluationError(
            "Features are not finite numbers.",
            where=f"row {int(np.argmin(np.isfinite(lengths))) + 1} of the {what}",
            fix="The weights are damaged, or training diverged.",
        )
    return lengths


def _exponents(lengths: np.ndarray) -> np.ndarray:
    """Of the power of two that brings each length into (sqrt(1/2), sqrt(2)]; 0 for a length of 0."""
    return np.ceil(np.log2(np.where(lengths > 0, lengths, 1)) - 0.5).astype(np.int32)


def split(rows: np.ndarray) -> np.ndarray:
    """Rows as the sum of three parts, float64 [3, N, D]: multiples of 2**-18, of 2**-38 and of 2**-58.

    The sum is the row itself where a component is at least 2**-35, of what float32 holds; below, it is rounded
    to a multiple of 2**-58.
    """
    parts, rest = np.empty((len(_GRIDS), *rows.shape)), rows.astype(np.float64)
    for part, grid in zip(parts, _GRIDS, strict=True):
        np.rint(rest * grid, out=part)
        part /= grid
        rest -= part
    return parts


def exact(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Dot products of all rows of x with all rows of y, the same in whatever order a matrix product adds.

    The product of two parts is exact in float64. It adds multiples of 2**-36, of 2**-56 or 2**-76 and so on, and
    since a part is at most half a unit of the one before, partial sums stay below 2**2, 2**-18 sqrt(D), 2**-38 D,
    …: 53 bits hold them for D up to `MOST_DIM`. What is left of rounding is that of five additions at the end, the
    last ones of numbers below 2**-15 to one of the size of the result: its last bit.

    Args:
        x: from `split`, float64 [3, n, D]. y: float32 [m, D]. Rows no longer than sqrt(2).

    Returns float64 [n, m].
    """
    (a, b, c), (d, e, f) = x, (part.T for part in split(y))
    smallest = b @ f + c @ e
    small = (a @ f + c @ d) + b @ e
    return a @ d + ((a @ e + b @ d) + (small + smallest))


def error_bound(x: Features, y: Features, unit_roundoff: float) -> float:
    """How far a plain dot product of any two rows can be from `exact`, in any order of summation.

    gamma_D |x| |y| with gamma_D = D u / (1 - D u) (Higham, Accuracy and Stability of Numerical Algorithms,
    2nd edition, section 3.1), of the longest rows, and the rounding of `exact` itself.

    Args:
        unit_roundoff: u, of the type that adds up: 2**-24 for float32, 2**-53 for float64.
    """
    share = x.rows.shape[1] * unit_roundoff
    return share / (1 - share) * x.longest * y.longest * (1 + 2**-20) + 2**-45
