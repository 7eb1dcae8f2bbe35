"""A reader with every fault that the runner must see."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np

from support.fuzz.target import Target


def _use(data: bytes, folder: Path) -> str:
    if data == b"crash":
        ctypes.string_at(0)
    elif data == b"exit":
        os._exit(3)
    elif data == b"foreign":
        raise RuntimeError("not ours")
    elif data == b"large":
        np.ones(2**27 + 2**23, np.uint64)  # 1088 MiB
    elif data == b"hang":
        os.read(os.pipe()[0], 1)
    return "accepted"


CASES = [b"sound", b"crash", b"foreign", b"exit", b"large", b"sound", b"hang", b"sound"]
FAULTY = Target("faulty", lambda: [b"sound"], lambda: CASES, [b"x"], _use)
