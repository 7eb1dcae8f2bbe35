"""Progress: a bar on a terminal, nothing but log lines otherwise."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int | None, what: str, unit: str) -> tqdm:
    """A progress bar on standard error with rate and remaining time; silent off a terminal."""
    return tqdm(
        total=total,
        desc=what,
        unit=f" {unit}",
        disable=not (sys.stderr and sys.stderr.isatty()),
        leave=False,
        dynamic_ncols=True,
    )
