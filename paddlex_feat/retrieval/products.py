"""Dot products of float32 features: fast with a bound of the error, or exact in any order. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from paddlex_feat.errors import EvaluationError

_HIGH, _LOW = 2.0**18, 2.0**38  # reciprocals of the grids of a feature's two parts
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


def split(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows as two float64 parts: multiples of 2**-18, and a rest of at most 2**-19 in multiples of 2**-38.

    Their sum is the row to the last bit where a component is at least 2**-15, else to 2**-39.
    """
    high = np.rint(rows * _HIGH) / _HIGH
    return high, np.rint((rows - high) * _LOW) / _LOW


def exact(x: tuple[np.ndarray, np.ndarray], y: np.ndarray) -> np.ndarray:
    """Dot products of all rows of x with all rows of y, rounded once, at the end.

    Each of the four products of parts is exact in float64, whatever the order in which a matrix product adds:
    multiples of 2**-36, 2**-56 and 2**-76 whose partial sums stay below 2**2, 2**-18 sqrt(D) and 2**-38 D, so
    that 53 bits hold them for D up to 2**15.

    Args:
        x: from `split`, float64 [n, D] twice. y: float32 [m, D]. Rows no longer than sqrt(2).

    Returns float64 [n, m].
    """
    (a, b), (c, d) = x, split(y.astype(np.float64))
    return a @ c.T + ((a @ d.T + b @ c.T) + b @ d.T)


def error_bound(x: Features, y: Features, unit_roundoff: float) -> float:
    """How far a plain dot product of any two rows can be from `exact`, in any order of summation.

    gamma_D |x| |y| with gamma_D = D u / (1 - D u) (Higham, Accuracy and Stability of Numerical Algorithms,
    2nd edition, section 3.1), and what `split` takes off small components.

    Args:
        unit_roundoff: u, of the type that adds up: 2**-24 for float32, 2**-53 for float64.
    """
    dim = x.rows.shape[1]
    share = dim * unit_roundoff
    return share / (1 - share) * x.longest * y.longest * (1 + 2**-20) + 2**-37 * dim**0.5
