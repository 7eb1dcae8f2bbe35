"""Processors, threads and memory that this process may use."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import Any

from paddlex_feat.runtime import cgroups


def cpu_count() -> int:
    """Processors this process may use, by its affinity and the CPU quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, cgroups.processors() or count)


def memory_limit() -> int:
    """Bytes that this process can take at most: the machine's memory, or its control group's limit.

    Not what is free just now: what depends on it must be the same in every run on a machine.
    """
    machine = _machine_memory()
    return min(machine, cgroups.memory() or machine)


def _machine_memory() -> int:
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    status = _MemoryStatus(dwLength=ctypes.sizeof(_MemoryStatus))
    windll: Any = getattr(ctypes, "windll", None)
    if windll is None or not windll.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)):
        return sys.maxsize  # unknown
    return int(status.ullTotalPhys)


class _MemoryStatus(ctypes.Structure):
    """MEMORYSTATUSEX of Windows (sysinfoapi.h), sizes in bytes."""

    _fields_ = (
        ("dwLength", ctypes.c_uint32),
        ("dwMemoryLoad", ctypes.c_uint32),
        ("ullTotalPhys", ctypes.c_uint64),
        ("others", ctypes.c_uint64 * 6),
    )


def peak_resident_bytes(status: Path = Path("/proc/self/status")) -> int:
    """Most memory that this process has held; 0 where the system does not tell (Windows)."""
    if status.exists():  # Linux, where ru_maxrss is also that of the process which started this one
        return int(status.read_text().partition("VmHWM:")[2].split()[0]) * 2**10
    try:
        import resource
    except ImportError:
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 2**10


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


_CPUINFO = Path("/proc/cpuinfo")


def is_amd_with_avx2() -> bool:
    """Whether this is a processor of AMD with AVX2; False where the system does not tell."""
    text = _cpuinfo()
    return "AuthenticAMD" in text and " avx2 " in text


def has_avx512() -> bool:
    """Whether the processors have AVX-512; False where the system does not tell."""
    return " avx512f " in _cpuinfo()


def _cpuinfo() -> str:
    try:
        return _CPUINFO.read_text()
    except OSError:
        return ""


replaced_omp_threads: dict[str, str] = {}  # OMP_NUM_THREADS as prepare_paddle has set it -> as the user had


def user_omp_threads() -> str:
    """The OMP_NUM_THREADS that the user has set, even after `prepare_paddle` has set another value."""
    current = os.environ.get("OMP_NUM_THREADS", "")
    return replaced_omp_threads.get(current, current)


def cpu_threads(threads: int) -> int:
    """`threads`, where 0 takes OMP_NUM_THREADS, else the physical cores."""
    wanted = user_omp_threads()
    return threads or (int(wanted) if wanted.isdecimal() and int(wanted) else physical_cores())
