"""What the control groups of this process allow it: processors and memory, in versions 1 and 2 of control groups."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_ROOT = Path("/")


def processors(root: Path = _ROOT) -> int | None:
    """The tightest CPU quota of the process's group and its parents in whole processors, at least 1; None without one.

    root: where /proc and the mount points of control groups are found.
    """
    shares = [quota / period for quota, period in _cpu_quotas(root) if quota > 0 and period > 0]
    return max(1, math.ceil(min(shares))) if shares else None


def memory(root: Path = _ROOT) -> int | None:
    """The tightest memory limit of the process's group and its parents in bytes; None without one.

    Version 1 writes a number beyond any machine's memory where there is no limit.
    """
    files = [*_files("memory", "memory.limit_in_bytes", root), *_files(None, "memory.max", root)]
    return min((limit for file in files for limit in _numbers(file)), default=None)


def _cpu_quotas(root: Path) -> Iterator[tuple[int, int]]:
    """(microseconds of processor time, in so many microseconds) of each group that has a quota."""
    for file in _files(None, "cpu.max", root):
        quota = _numbers(file)
        if len(quota) == 2:  # else it begins with "max"
            yield quota[0], quota[1]
    for file in _files("cpu", "cpu.cfs_quota_us", root):
        quota = _numbers(file) + _numbers(file.with_name("cpu.cfs_period_us"))
        if len(quota) == 2:
            yield quota[0], quota[1]


def _numbers(file: Path) -> list[int]:
    with suppress(OSError, ValueError):
        return [int(word) for word in file.read_text().split()]
    return []


def _files(controller: str | None, name: str, root: Path) -> Iterator[Path]:
    """The files `name` of the process's group and of its parents, up to the mount point of their hierarchy.

    controller: of version 1; None is version 2, whose one hierarchy has all controllers.
    """
    try:
        groups = [line.split(":", 2) for line in (root / "proc/self/cgroup").read_text().splitlines()]
        mounts = [line.partition(" - ") for line in (root / "proc/self/mountinfo").read_text().splitlines()]
    except (OSError, UnicodeDecodeError):  # not Linux
        return
    own = [Path(path) for _, names, path in groups if (controller or "") in names.split(",")]
    for place, _, file_system in mounts:
        kind, _, source_and_options = file_system.partition(" ")
        if kind != ("cgroup" if controller else "cgroup2"):
            continue
        if controller and controller not in source_and_options.rpartition(" ")[2].split(","):
            continue
        top, point = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), w) for w in place.split(" ")[3:5])
        for group in own:
            # A container may see its own part of the hierarchy alone, the top of which is the mount's root.
            seen = group.is_relative_to(top) and ".." not in group.parts
            below = group.relative_to(top) if seen else Path()
            yield from (root / point.lstrip("/") / part / name for part in (below, *below.parents))
