"""run.json: with what, from what and how a run was made."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from paddlex_feat.files import write_keeping

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


def fingerprint(paths: Sequence[str], files: Sequence[str], labels: Sequence[int]) -> dict[str, Any]:
    """Identity of a list: number of images, and SHA-256 over listed path, label and size in bytes of each.

    A change of pixels that keeps a file's size is not seen; check_dataset reads contents.
    """
    digest = hashlib.sha256()
    for path, file, label in zip(paths, files, labels, strict=True):
        try:
            size = os.stat(file).st_size  # noqa: PTH116 - perhaps a million times
        except OSError:
            size = -1
        digest.update(f"{path}\0{label}\0{size}\n".encode(errors="surrogateescape"))
    return {"images": len(files), "sha256": digest.hexdigest()}


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
    handed_down = os.environ.get("PADDLEX_FEAT_COMMAND")
    return json.loads(handed_down) if handed_down else [sys.executable, *sys.argv]
