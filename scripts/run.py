"""Set up .venv once, then run the demo or the tests in it. Standard library only."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
OURS = VENV / "made_by_scripts_run"
PYTHON = VENV / "bin" / "python"
# Where .venv is active, this script runs in it: what makes it anew must be the Python it was made from.
BASE = str(Path(getattr(sys, "_base_executable", None) or sys.executable).resolve())
EXTRAS = "demo,starter,test,onnx,openvino"
# Newer versions than 2.6 are on Paddle's own index alone, a page for each CUDA version.
GPU_WHEEL, GPU_INDEX = "paddlepaddle-gpu==3.3.1", "https://www.paddlepaddle.org.cn/packages/stable/{}/"
CUDA = ("cu118", "cu126", "cu129", "cu130")
PINNED_FOR = (3, 11)  # the Python that constraints.txt was made with
# What `bash run test TIER` gives pytest, a list for each time that it is started (docs/testing.md). The workers of
# pytest-xdist share the processors, so what measures time and memory runs in one process.
WORKERS = ["-n", "2", "--dist", "worksteal"]
NOT_NIGHTLY = ["-m", "not nightly"]
TIERS = {
    "": [WORKERS],  # units and integration, but for what is slow
    "unit": [["tests/unit", *NOT_NIGHTLY, *WORKERS]],
    "integration": [["tests/integration", *NOT_NIGHTLY, *WORKERS]],
    "parity": [["tests/parity", *NOT_NIGHTLY, *WORKERS]],
    "robustness": [["tests/robustness", *NOT_NIGHTLY, *WORKERS]],
    "perf": [["tests/perf", *NOT_NIGHTLY]],
    "landing": [
        ["tests", "--ignore=tests/perf", *NOT_NIGHTLY, *WORKERS, "--durations=60"],
        ["tests/perf", *NOT_NIGHTLY],
    ],
    "nightly": [["tests", "-m", "nightly", *WORKERS]],
    "all": [["tests", "--ignore=tests/perf", "-m", "", *WORKERS], ["tests/perf", "-m", ""]],
}
CHECKED = ("", "landing", "all")  # linter, formatter and type checker come first
USAGE = (
    f"usage: bash run demo | test [{'|'.join(filter(None, TIERS))}] [pytest arguments] | setup [--gpu {'|'.join(CUDA)}]"
)


def main(words: list[str]) -> int:
    """Run one command; its exit code."""
    commands: dict[str, Callable[[list[str]], int]] = {"demo": demo, "test": test, "setup": lambda _: 0}
    gpu = None
    if words[:1] == ["setup"] and len(words) > 1:
        option, _, gpu = "=".join(words[1:]).partition("=")
        if option != "--gpu" or gpu not in CUDA:
            words = []
    if not words or words[0] not in commands:
        print(USAGE, file=sys.stderr)
        return 2
    set_up(gpu)
    return commands[words[0]](words[1:])


def set_up(gpu: str | None = None) -> None:
    """Create .venv and install the package with its extras; nothing if that is done already.

    gpu: a name of CUDA installs paddlepaddle-gpu for it instead of paddlepaddle; None: what .venv has been made for.
    """
    gpu = gpu or (OURS.read_text().strip() if OURS.is_file() else "")
    extras, gpu_wheel = (EXTRAS, GPU_WHEEL) if gpu else (f"cpu,{EXTRAS}", "")
    wanted = hashlib.sha256(repr((sys.version, BASE, extras, ROOT, gpu, gpu_wheel)).encode())
    for name in ("setup.cfg", "pyproject.toml", "constraints.txt"):
        wanted.update((ROOT / name).read_bytes())
    stamp = VENV / "installed"
    if stamp.is_file() and stamp.read_text() == wanted.hexdigest():
        return
    if VENV.exists() and not OURS.is_file():
        sys.exit(f"{VENV} was not made by this script.\n  to do: move it away, then run this again.")
    print(f"Setting up {VENV} (once, some minutes) …", flush=True)
    shutil.rmtree(VENV, ignore_errors=True)
    VENV.mkdir()
    OURS.write_text(gpu)
    install = make_environment()
    pins = ["-c", "constraints.txt"] if sys.version_info[:2] == PINNED_FOR else []
    options = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "install", *options, *pins, "-e", f".[{extras}]"], cwd=ROOT, check=True)
    if gpu:
        subprocess.run([*install, "install", *options, gpu_wheel, "-i", GPU_INDEX.format(gpu)], cwd=ROOT, check=True)
    stamp.write_text(wanted.hexdigest())


def make_environment() -> list[str]:
    """Create .venv and return the pip command that installs into it."""
    if subprocess.run([BASE, "-m", "venv", VENV], capture_output=True).returncode == 0:
        return [str(PYTHON), "-m", "pip"]
    # Debian's python3 may come without ensurepip, but with pip itself.
    subprocess.run([BASE, "-m", "venv", "--without-pip", VENV], check=True)
    pip = [BASE, "-m", "pip", "--python", str(PYTHON)]
    if subprocess.run([*pip, "--version"], capture_output=True).returncode == 0:
        return pip
    sys.exit(f"{BASE} has neither ensurepip nor pip.\n  to do: install python3-venv, then run this again.")


def demo(words: list[str]) -> int:
    """The main job on the ORL faces."""
    return subprocess.run([PYTHON, "scripts/demo.py", *words], cwd=ROOT).returncode


def test(words: list[str]) -> int:
    """Linter, formatter, type checker, then pytest: words are the tier, if one is named, and arguments of pytest."""
    tier, words = (words[0], words[1:]) if words and words[0] in TIERS else ("", words)
    checks = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]] if tier in CHECKED else []
    for step in [*checks, *(["pytest", *given, *words] for given in TIERS[tier])]:
        print("+", " ".join(step), flush=True)
        code = subprocess.run([PYTHON, "-m", *step], cwd=ROOT, env={**os.environ, "PYTHONUNBUFFERED": "1"}).returncode
        if code:
            return code
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"Set-up failed: {' '.join(map(str, error.cmd))}\n  to do: see pip's message above, then run this again."
        )
