"""run.json: with what, from what and how a run was made."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from paddlex_feat.files import write_keeping
from paddlex_feat.group import COMMAND

PACKAGES = ("paddlex_feat", "paddlepaddle", "paddlepaddle-gpu", "numpy", "opencv-python-headless", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; absent ones are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def write(folder: Path, command: Sequence[str], device: str, processes: int, dataset: dict[str, Any]) -> None:
    """Write run.json; an earlier one of other content is kept as .bak."""
    content = {
        "command": list(command),
        "working_directory": str(Path.cwd()),
        "versions": versions(),
        "device": device,
        "processes": processes,
        "dataset": dataset,
    }
    write_keeping(folder / "run.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def command_line() -> list[str]:
    """The command that the user gave, also in a process that was started for it."""
    handed_down = os.environ.get(COMMAND)
    return json.loads(handed_down) if handed_down else [sys.executable, *sys.argv]
