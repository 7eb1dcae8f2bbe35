"""What the C library does with memory that has been freed."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

# Options of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -3, -4, -8
# One arena: those of threads hold no block above 64 MiB. Thresholds in bytes; glibc before 2.35 refuses the second one
# of mmap, and keeps the first.
_KEEP_SOME = (
    (_ARENA_MAX, 1),
    (_MMAP_MAX, 2**16),
    (_MMAP_THRESHOLD, 2**25),
    (_MMAP_THRESHOLD, 2**26),
    (_TRIM_THRESHOLD, 2**28),
)
_KEEP_ALL = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))  # no block of its own mapping, no trimming
_HUGE_PAGE = 2**21  # bytes
_MADV_HUGEPAGE = 14  # of Linux

_all_kept = False


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MiB of freed memory for the next layer, image or batch.

    Left to itself it gives large blocks back to the system at once, and clearing fresh pages for the next takes a tenth
    of the time of Paddle's engine, and a third of that of decoding 1365 x 1024 pixels. Does nothing with other C
    libraries, and where the user has set malloc's variables.
    """
    libc = _glibc()
    if libc is not None and not _all_kept:
        _set(libc, _KEEP_SOME)


@contextlib.contextmanager
def keep_all_freed_memory(most: int) -> Iterator[None]:
    """While the block runs, let glibc keep all freed memory, on huge pages; then give back what is free.

    A step of training takes and frees gigabytes: at 32 images of 224 px, clearing fresh pages took a third of its time.
    Threads that have an arena of their own already are not helped.

    Args:
        most: bytes that are laid out on huge pages where the system allows it. They are not used before they are
            needed.
    """
    global _all_kept
    libc = _glibc()
    if libc is None or _all_kept:
        yield
        return
    _all_kept = True
    try:
        _set(libc, _KEEP_ALL)
        if _has_room():
            _use_huge_pages(libc, most)
        yield
    finally:
        _all_kept = False
        _set(libc, _KEEP_SOME)
        libc.malloc_trim(0)


def give_memory_back() -> None:
    """Give freed memory back to the system now, also where more is kept for later."""
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc and the user has not set its malloc."""
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return None
    with contextlib.suppress(TypeError):  # no library of the process on Windows
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "mallopt") else None
    return None


def _set(libc: ctypes.CDLL, options: tuple[tuple[int, int], ...]) -> None:
    for option, value in options:
        libc.mallopt(option, value)


def _has_room() -> bool:
    """Whether addresses that are reserved and not used take nothing from others."""
    import resource  # not on Windows

    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    try:
        strict = Path("/proc/sys/vm/overcommit_memory").read_text().strip() == "2"
    except OSError:
        strict = False
    return not strict and all(limit == resource.RLIM_INFINITY for limit in limits)


def _use_huge_pages(libc: ctypes.CDLL, size: int) -> None:
    """Ask for huge pages in the next `size` bytes of the heap: by a block that is advised of and freed unused."""
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes, libc.madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(size)
    if not block:  # more than a limit of the process or the system allows: pages of 4 KiB then
        return
    start = -(-block // _HUGE_PAGE) * _HUGE_PAGE
    libc.madvise(start, (block + size - start) // _HUGE_PAGE * _HUGE_PAGE, _MADV_HUGEPAGE)
    libc.free(block)
