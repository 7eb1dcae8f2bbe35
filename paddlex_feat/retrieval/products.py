"""Dot products that are exact, whatever the order of their summation. NumPy only."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_GRID = 2.0**24
_UNIT_ROUNDOFF = 2.0**-24
_ROWS_AT_A_TIME = 8192


@dataclass(frozen=True)
class Features:
    """Rows divided by a power of two and rounded to multiples of 2**-24, which float32 holds.

    For a unit row that moves a component by at most 2**-25, as float32 itself does near 1. With rows no
    longer than sqrt(2), a product of two components is a multiple of 2**-48 and every partial sum of a dot
    product is below 4: 50 bits, of which float64 holds 53. So float64 makes no error, in any order.

    Attributes:
        rows: float32 [N, D], an array or a memory-mapped file; not copied.
        scale: float64 [N, 1] or [1, 1], powers of two.
        longest: length of the longest row on the grid.
    """

    rows: np.ndarray
    scale: np.ndarray
    longest: float

    @classmethod
    def each(cls, rows: np.ndarray) -> Features:
        """Every row by a scale of its own: for queries, whose ranking it does not change."""
        return cls._of(rows, lengths := _lengths(rows), _powers_of_two(lengths))

    @classmethod
    def together(cls, rows: np.ndarray) -> Features:
        """All rows by one scale, that of the longest: for a gallery, whose order must stay."""
        return cls._of(rows, lengths := _lengths(rows), _powers_of_two(lengths.max(initial=0, keepdims=True)))

    @classmethod
    def _of(cls, rows: np.ndarray, lengths: np.ndarray, scale: np.ndarray) -> Features:
        rounding = np.sqrt(rows.shape[1]) / _GRID
        return cls(rows, scale[:, None], float((lengths / scale).max(initial=0)) * (1 + 1e-6) + rounding)

    def take(self, indices: np.ndarray) -> np.ndarray:
        """Rows on the grid, float32 [n, D]."""
        part = np.asarray(self.rows[indices], np.float32)
        scale = self.scale[indices] if len(self.scale) > 1 else self.scale
        part = part * (1 / scale).astype(np.float32)
        part *= np.float32(_GRID)
        np.rint(part, out=part)
        part *= np.float32(1 / _GRID)
        return part


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Euclidean lengths, float64 [N]."""
    lengths = np.zeros(len(rows))
    for start in range(0, len(rows), _ROWS_AT_A_TIME):
        part = np.asarray(rows[start : start + _ROWS_AT_A_TIME], np.float32)
        lengths[start : start + len(part)] = np.linalg.norm(part, axis=1)
    return lengths


def _powers_of_two(lengths: np.ndarray) -> np.ndarray:
    """The power of two that brings each length into (sqrt(1/2), sqrt(2)]; 1 for a length of 0."""
    exponents = np.ceil(np.log2(np.where(lengths > 0, lengths, 1)) - 0.5)
    return 2.0 ** np.clip(exponents, -120, 120)


def error_bound(x: Features, y: Features) -> float:
    """How far a float32 dot product of any two rows can be from the exact one, in any order.

    gamma_D |x| |y| with gamma_D = D u / (1 - D u) and u = 2**-24 (Higham, Accuracy and Stability of
    Numerical Algorithms, 2nd edition, section 3.1).
    """
    share = x.rows.shape[1] * _UNIT_ROUNDOFF
    return share / (1 - share) * x.longest * y.longest
