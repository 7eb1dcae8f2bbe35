"""run.json: inputs, environment, command and output hashes of a training run."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from paddlex_feat.errors import as_output_error
from paddlex_feat.fileio.atomic import read_result, write_json
from paddlex_feat.fileio.backups import write_with_backup
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.runtime import paddle_build
from paddlex_feat.runtime.distributed import ENV_COMMAND
from paddlex_feat.runtime.paddle_import import mkl_cpu_type

NAME = "run.json"
_AS_MODULE = "python -m paddlex_feat"
PACKAGES = ("paddlex_feat", "paddlepaddle", "paddlepaddle-gpu", "numpy", "numba", "opencv-python-headless", "pillow")
# Not among them: logs and curves, which tell times, and config.yaml, which is recorded when the run begins.
_OUTPUTS = ("best_model/**/*", "latest/**/*", "epoch_*/**/*", "class_map.json", "class_names.json", "train_result.json")
_OF_OTHER_MODES = (
    "check_dataset_result.json",
    "evaluate_result.json",
    "export_result.json",
    "inference.*",
    "weights.*",
)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result; absent ones are left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def processor() -> str:
    """The model of the processor, as far as the system says."""
    try:
        found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except (OSError, UnicodeDecodeError):
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _git(folder: Path, *words: str) -> str:
    # Without its optional locks it does not disturb another git at work there. It runs no monitor, and fetches nothing.
    git = ["git", "-c", "core.fsmonitor=false", "--no-optional-locks", "-C", str(folder)]
    environment = {**os.environ, "GIT_ALLOW_PROTOCOL": "none"}
    done = subprocess.run(  # noqa: S603 - our own words
        [*git, *words], env=environment, capture_output=True, text=True, errors="replace", timeout=30, check=True
    )
    return done.stdout.strip()


def git_state(folder: Path) -> dict[str, Any] | None:
    """Commit of the working copy that holds `folder`, and whether tracked files differ; None where there is none.

    "changed" is "unknown" where the repository's own configuration names filters: git would run these commands.
    """
    try:
        commit = _git(folder, "rev-parse", "HEAD")
        # Of a submodule, whose configuration has not been looked at, the commit alone counts.
        status = ("status", "--porcelain", "--untracked-files=no", "--ignore-submodules=dirty")
        changed = "unknown" if _has_filters(folder) else bool(_git(folder, *status))
    except (OSError, subprocess.SubprocessError):  # no git, no repository, no commit yet
        return None
    return {"commit": commit, "changed": changed}


def _has_filters(folder: Path) -> bool:
    """Does the repository itself, and not the user's or the system's configuration, tell git to run filters?"""
    try:
        found = _git(folder, "config", "--show-scope", "--name-only", "--get-regexp", r"^filter\..*\.(clean|process)$")
    except subprocess.CalledProcessError as error:
        return error.returncode != 1  # of none; else this git does not know the question
    return any(line.startswith(("local\t", "worktree\t")) for line in found.splitlines())


def working_directory() -> Path | None:
    """None if it has been removed."""
    try:
        return Path.cwd()
    except FileNotFoundError:
        return None


def write_start(
    folder: Path,
    command: Sequence[str],
    device: str,
    convolutions: str,
    processes: int,
    dataset: dict[str, Any],
    resumed: Sequence[dict[str, Any]] = (),
    origin: str = "",
) -> None:
    """Write run.json, once config.yaml is there; an earlier one of other content is kept as .bak.

    Args:
        folder: the run's folder, with config.yaml.
        command: the words of the command line.
        device: the full name of this process's device, "cpu" or "gpu:N".
        convolutions: what `modes.train_kernels.choose_convolutions` returns; each way rounds otherwise, and the
            machine's memory decides too.
        processes: number of processes of the job.
        dataset: {list: {"images": count, "sha256": digest}}.
        origin: format of a data set without lists, and how it was understood and divided.
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
        "threads": os.environ.get("OMP_NUM_THREADS"),  # of each process's Paddle, as runtime.prepare_paddle has set it
        "processor": processor(),
        **({"mkl_debug_cpu_type": mkl_cpu_type()} if mkl_cpu_type() else {}),  # products round otherwise with it
        "config": sha256_file(folder / "config.yaml"),
        "dataset": dataset,
        **({"dataset_read_as": origin} if origin else {}),
    }
    gpu = paddle_build.describe(device)
    if gpu is not None:
        content["gpu"] = gpu
    path = folder / NAME
    before = {**read_result(path), "resumed": content["resumed"]}
    for key in ("outputs", "sizes"):
        before.pop(key, None)
    if before == content:  # the same run goes on, and has no outputs until it ends
        write_json(path, content)
    else:
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        write_with_backup(path, text.encode(errors="backslashreplace"))  # as write_json does


def write_end(folder: Path) -> None:
    """Add SHA-256 and size in bytes of every output to run.json, now that the run has ended."""
    record = read_result(folder / NAME)
    if record:
        with as_output_error(folder):
            files = outputs(folder)
            record["outputs"] = sha256_of(files)
            record["sizes"] = {name: path.stat().st_size for name, path in files.items()}
        write_json(folder / NAME, record)


def outputs(folder: Path, of_other_modes: bool = False) -> dict[str, Path]:
    """The outputs of a run by path below its folder, of other modes' too if asked for. May raise OSError."""
    patterns = _OUTPUTS + (_OF_OTHER_MODES if of_other_modes else ())
    files = sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
    return {path.relative_to(folder).as_posix(): path for path in files}


def sha256_of(files: dict[str, Path]) -> dict[str, str]:
    """SHA-256 of each file, by its name. May raise OSError."""
    known: dict[tuple[int, int], str] = {}  # by inode: checkpoints share their files
    found = {}
    for name, path in files.items():
        status = path.stat()
        inode = (status.st_dev, status.st_ino)
        if inode not in known:
            known[inode] = sha256_file(path)
        found[name] = known[inode]
    return found


def command_line() -> list[str]:
    """The command that the user gave, also in a process that was started for it."""
    handed_down = os.environ.get(ENV_COMMAND)
    if handed_down:
        words: list[str] = json.loads(handed_down)
        return words
    as_module = program() == _AS_MODULE and Path(sys.argv[0]).parent == Path(__file__).parent.parent
    return [sys.executable, *(["-m", "paddlex_feat"] if as_module else sys.argv[:1]), *sys.argv[1:]]


def program() -> str:
    """How this program can be started again, as far as possible as the user has started it."""
    handed_down = os.environ.get(ENV_COMMAND)
    name = Path(json.loads(handed_down)[0] if handed_down else sys.argv[0]).name
    return {"main.py": "python main.py", "paddlex-feat": "paddlex-feat"}.get(name, _AS_MODULE)
