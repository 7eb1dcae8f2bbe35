"""Progress: a bar on a terminal, nothing but log lines otherwise."""

from __future__ import annotations

import sys

from tqdm import tqdm


def bar(total: int | None, what: str, unit: str, shown: bool = True) -> tqdm:
    """A progress bar on standard error with rate and remaining time; silent off a terminal, and where not `shown`."""
    return tqdm(
        total=total,
        desc=what,
        unit=f" {unit}",
        disable=not (shown and sys.stderr and sys.stderr.isatty()),
        leave=False,
        dynamic_ncols=True,
    )
