"""Progress: a bar on a terminal, nothing but log lines otherwise."""

from __future__ import annotations

import sys

from tqdm import tqdm


class _Silent(tqdm):
    """A bar that is not shown, for which tqdm would start a thread all the same, and for good."""

    monitor_interval = 0


def bar(total: int | None, what: str, unit: str, shown: bool = True) -> tqdm:
    """A progress bar on standard error with rate and remaining time; silent off a terminal, and where not `shown`."""
    shown = bool(shown and sys.stderr and sys.stderr.isatty())
    return (tqdm if shown else _Silent)(
        total=total,
        desc=what,
        unit=f" {unit}",
        disable=not shown,
        leave=False,
        dynamic_ncols=True,
    )
