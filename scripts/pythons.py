"""Run the tests under several Pythons, each in an environment of its own.

    python scripts/pythons.py [3.10 3.11 …] [--paddle] [--lowest] [--folder DIR] [-- pytest arguments]

Without --paddle, Paddle is not installed, and the modules of tests that need it skip themselves. Without arguments of
pytest, all tiers run, but for what is marked `slow` or `nightly`. Standard library only.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("3.10", "3.11", "3.12", "3.13")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "paddlex_feat" / "pythons"
_BOUND = re.compile(r"^    ([\w-]+)>=([\d.]+)", re.MULTILINE)


def interpreter(version: str) -> str:
    """The command of Python `version`, on PATH or below pyenv's folder. Ends the program if there is none."""
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [shutil.which(f"python{version}"), *map(str, sorted(pyenv.glob(f"{version}.*/bin/python")))]
    for command in filter(None, found):  # a shim of pyenv is on PATH also where its Python is not switched on
        if subprocess.run([command, "-c", "import venv"], capture_output=True).returncode == 0:
            return command
    sys.exit(f"Python {version} is not there.\n  to do: install it and put it on PATH, or leave it out.")


def lowest_bounds() -> list[str]:
    """The requirements of setup.cfg that hold always, each in the lowest series that it admits, such as 4.8.*."""
    required = (ROOT / "setup.cfg").read_text().partition("install_requires =")[2].partition("[")[0]
    return [f"{name}=={version}.*" for name, version in _BOUND.findall(required)]


def environment(version: str, folder: Path, extras: str, pins: list[str]) -> Path:
    """The Python of an environment that holds the checkout, made anew if it is not there."""
    python = folder / "bin" / "python"
    if not python.exists():
        subprocess.run([interpreter(version), "-m", "venv", folder], check=True)
    pip = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "-e", f"{ROOT}[{extras}]", *pins], check=True)
    subprocess.run([*pip, "check"], check=True)
    return python


def main(words: list[str]) -> int:
    """Test each version in turn and print a table; 1 if one of them failed."""
    words, more = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=VERSIONS, help=f"default: {' '.join(VERSIONS)}")
    parser.add_argument("--paddle", action="store_true", help="install paddlepaddle, and run all tests")
    parser.add_argument(
        "--lowest",
        action="store_true",
        help="of what is always required, take the lowest versions",
    )
    parser.add_argument("--folder", type=Path, default=CACHE, help=f"of the environments; default: {CACHE}")
    asked = parser.parse_args(words)
    extras, pins = "cpu,demo,starter,test" if asked.paddle else "demo,test", lowest_bounds() if asked.lowest else []
    name = ("paddle" if asked.paddle else "plain") + ("-lowest" if asked.lowest else "")
    rows, failed = [], False
    for version in asked.versions:
        python = environment(version, asked.folder.resolve() / f"{version}-{name}", extras, pins)
        started = time.monotonic()
        command = [str(python), "-m", "pytest", "-p", "no:cacheprovider", *(more or ["tests"])]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as tests:
            lines = []
            for line in tests.stdout or ():
                print(line, end="", flush=True)
                lines.append(line.strip())
        failed |= tests.returncode != 0
        asked_version = [str(python), "-c", "import platform; print(platform.python_version())"]
        full = subprocess.run(asked_version, capture_output=True, text=True).stdout.strip()
        rows.append(f"| {full} | {lines[-1] if lines else ''} | {time.monotonic() - started:.0f} s |")
    print("\n| Python | tests | time |\n|---|---|---|", *rows, sep="\n")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
