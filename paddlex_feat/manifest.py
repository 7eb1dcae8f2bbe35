"""run.json: with what, from what and how a run was made, and what came out."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from paddlex_feat.files import output_errors, read_result, write_json, write_keeping
from paddlex_feat.group import COMMAND

NAME = "run.json"
PACKAGES = ("paddlex_feat", "paddlepaddle", "paddlepaddle-gpu", "numpy", "opencv-python-headless", "pillow")
# Not among them: logs and curves, which tell times, and config.yaml, which is recorded when the run begins.
_OUTPUTS = ("best_model/**/*", "latest/**/*", "epoch_*/**/*", "class_map.json", "train_result.json")
_OF_MODES = ("check_dataset_result.json", "evaluate_result.json", "export_result.json", "inference.*", "weights.*")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; absent ones are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the working copy that holds `folder`, and whether tracked files differ; None where there is none."""
    # Without its optional locks it does not disturb another git at work there.
    git = ["git", "-c", "core.fsmonitor=false", "--no-optional-locks", "-C", str(folder)]
    try:
        commit, changes = (
            subprocess.run(  # noqa: S603 - our own words
                [*git, *words], capture_output=True, text=True, timeout=30, check=True
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet
        return None
    return {"commit": commit, "changed": bool(changes)}


def working_directory() -> Path | None:
    """None if it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def begin(
    folder: Path,
    command: Sequence[str],
    device: str,
    convolutions: str,
    processes: int,
    dataset: dict[str, Any],
    resumed: Sequence[dict[str, Any]] = (),
) -> None:
    """Write run.json, once config.yaml is there; an earlier one of other content is kept as .bak.

    Args:
        convolutions: "oneDNN" or "native", which round otherwise; the machine's memory decides too.
        resumed: what the runs that this one goes on with were made from, {"config", "dataset"} each.
    """
    place = working_directory()
    content = {
        "command": list(command),
        "resumed": list(resumed),
        "working_directory": place and str(place),
        "git": place and git_state(place),
        "versions": versions(),
        "device": device,
        "convolutions": convolutions,
        "processes": processes,
        "config": sha256(folder / "config.yaml"),
        "dataset": dataset,
    }
    path = folder / NAME
    before = {**read_result(path), "resumed": content["resumed"]}
    before.pop("outputs", None)
    if before == content:  # the same run goes on, and has no outputs until it ends
        write_json(path, content)
    else:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_keeping(path, text.encode(errors="backslashreplace"))  # as write_json does


def end(folder: Path) -> None:
    """Add the SHA-256 of every output to run.json, now that the run has ended."""
    record = read_result(folder / NAME)
    if record:
        with output_errors(folder):
            record["outputs"] = digests(folder)
        write_json(folder / NAME, record)


def digests(folder: Path, of_other_modes: bool = False) -> dict[str, str]:
    """SHA-256 of the outputs of a run by path below its folder, of other modes' too if asked for. May raise OSError."""
    patterns = _OUTPUTS + (_OF_MODES if of_other_modes else ())
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    known: dict[tuple[int, int], str] = {}  # by inode: checkpoints share their files
    found = {}
    for path in files:
        status = path.stat()
        inode = (status.st_dev, status.st_ino)
        if inode not in known:
            known[inode] = sha256(path)
        found[path.relative_to(folder).as_posix()] = known[inode]
    return found


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def command_line() -> list[str]:
    """The command that the user gave, also in a process that was started for it."""
    handed_down = os.environ.get(COMMAND)
    return json.loads(handed_down) if handed_down else [sys.executable, *sys.argv]
