"""What the C library does with memory that has been freed."""

from __future__ import annotations

import contextlib
import ctypes
import os

# Of glibc's mallopt (malloc.h): option -> value. One arena, for those of threads hold no block above 64 MiB.
_MALLOC = {-8: 1, -3: 2**26, -1: 2**28}  # M_ARENA_MAX; M_MMAP_THRESHOLD and M_TRIM_THRESHOLD in bytes


def keep_freed_memory() -> None:
    """Let glibc keep up to 256 MiB of freed memory for the next layer, image or batch.

    Left to itself it gives large blocks back to the system at once, and clearing fresh pages for the next takes a tenth
    of the time of Paddle's engine, and a third of that of decoding 1365 x 1024 pixels. Does nothing with other C
    libraries, and where the user has set malloc's variables.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return
    with contextlib.suppress(AttributeError, TypeError):  # no glibc; no library of the process on Windows
        mallopt = ctypes.CDLL(None).mallopt
        for option, value in _MALLOC.items():
            mallopt(option, value)
