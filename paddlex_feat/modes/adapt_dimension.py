"""Export.dimension: features cut to fewer numbers."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from paddlex_feat.errors import ConfigError

if TYPE_CHECKING:  # they import Paddle
    pass

log = logging.getLogger(__name__)
SAMPLE = 5000  # training images that the directions are fitted to


def require_dimension(dimension: int | None, available: int) -> None:
    """Raise ConfigError if features of `available` numbers cannot be cut to `dimension`."""
    if dimension is not None and dimension > available:
        raise ConfigError(
            f"Features of {available} numbers cannot be cut to {dimension}.",
            where="Export.dimension",
            fix=f"Use at most {available}, or null for all.",
            code="dimension-too-large",
        )
