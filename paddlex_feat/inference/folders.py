"""The files of a folder and of those below it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path


def files_below(top: str, onerror: Callable[[OSError], None]) -> Iterator[Path]:
    """All files, in no order, also where symbolic links to folders lead; of each real folder once.

    What lies below `top` itself keeps its own path: links are followed after that, in the order of their paths.
    `onerror` is called for each folder that cannot be read.
    """
    seen: set[str] = set()
    waiting = [top]
    while waiting:
        links: list[str] = []
        for place in sorted(waiting):
            for folder, below, names in os.walk(place, onerror=onerror):
                real = os.path.realpath(folder)
                if real in seen:
                    below.clear()
                    continue
                seen.add(real)
                links += [str(path) for path in (Path(folder, name) for name in below) if path.is_symlink()]
                yield from (Path(folder, name) for name in names)
        waiting = links
