"""Set up .venv once, then run the demo or the tests in it. Standard library only."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
OURS = VENV / "made_by_scripts_run"
PYTHON = VENV / "bin" / "python"
# Where .venv is active, this script runs in it: what makes it anew must be the Python it was made from.
BASE = str(Path(getattr(sys, "_base_executable", None) or sys.executable).resolve())
EXTRAS = "cpu,demo,test,onnx,openvino"
PINNED_FOR = (3, 11)  # the Python that constraints.txt was made with
USAGE = "usage: bash run demo | test [pytest arguments] | setup"


def main(words: list[str]) -> int:
    """Run one command; its exit code."""
    commands = {"demo": demo, "test": test, "setup": lambda _: 0}
    if not words or words[0] not in commands:
        print(USAGE, file=sys.stderr)
        return 2
    set_up()
    return commands[words[0]](words[1:])


def set_up() -> None:
    """Create .venv and install the package with its extras; nothing if that is done already."""
    wanted = hashlib.sha256(repr((sys.version, BASE, EXTRAS, ROOT)).encode())
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
    OURS.touch()
    install = make_environment()
    pins = ["-c", "constraints.txt"] if sys.version_info[:2] == PINNED_FOR else []
    options = ["--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "install", *options, *pins, "-e", f".[{EXTRAS}]"], cwd=ROOT, check=True)
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
    """Linter, formatter, type checker, then pytest with `words`."""
    steps = [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"], ["pytest", *words]]
    for step in steps:
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
