"""Processors, threads and memory that this process may use."""

from __future__ import annotations

import os
from pathlib import Path

from paddlex_feat.runtime import cgroups


def cpu_count() -> int:
    """Processors this process may use, by its affinity and the CPU quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, cgroups.processors() or count)


def memory_limit() -> int:
    """Bytes that this process can take at most: the machine's memory, or its control group's limit.

    Not what is free just now: what depends on it must be the same in every run on a machine.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, cgroups.memory() or machine)


def physical_cores(folder: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores this process may use: the two threads of one core count once. Where Linux does not say, `cpu_count`.

    A CPU quota limits them too: threads beyond it would be stopped in the middle of their work.
    """
    try:
        allowed = os.sched_getaffinity(0)
        cores = len({(folder / f"cpu{i}/topology/thread_siblings_list").read_text() for i in allowed})
    except (OSError, AttributeError):
        return cpu_count()
    return min(cores, cgroups.processors() or cores)


replaced_omp_threads: dict[str, str] = {}  # OMP_NUM_THREADS as prepare_paddle has set it -> as the user had


def user_omp_threads() -> str:
    """The OMP_NUM_THREADS that the user has set, even after `prepare_paddle` has set another value."""
    current = os.environ.get("OMP_NUM_THREADS", "")
    return replaced_omp_threads.get(current, current)


def cpu_threads(threads: int) -> int:
    """`threads`, where 0 takes OMP_NUM_THREADS, else the physical cores."""
    wanted = user_omp_threads()
    return threads or (int(wanted) if wanted.isdecimal() and int(wanted) else physical_cores())
