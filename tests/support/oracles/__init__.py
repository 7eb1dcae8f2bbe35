"""Other programs that answer the same question, each in an environment of its own."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from filelock import FileLock

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent.parent.parent / ".cache" / "oracles"
REQUIREMENTS = {
    "paddleclas": ["paddleclas==2.6.0", "paddlepaddle==3.3.1", "numpy==1.24.4", "pydantic>=2.11,<3"],
    # Nothing beside it: what it needs itself is all that it runs with.
    "paddle26": ["paddlepaddle==2.6.2", "numpy<2"],
    "paddlex": ["paddlex[cv]==3.7.2", "paddlepaddle==3.3.1"],
    "visualdl": ["visualdl>=2.5"],
    "metrics": [
        "scikit-learn==1.7.2",
        "cleanlab==2.9.0",
        "pytorch-metric-learning==2.9.0",
        "torch==2.13.0",
        "numpy>=2,<3",
    ],
}


def ask(oracle: str, script: str, *words: str | Path) -> None:
    """Run `script` of this folder in the environment of `oracle`, which is made at first use."""
    done = subprocess.run([environment(oracle), HERE / script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def environment(oracle: str) -> Path:
    """The Python of an oracle's environment. Its wheels need Python 3.10 or 3.11; else the test skips."""
    base = next((p for p in map(shutil.which, ("python3.11", "python3.10", "python3")) if p and _fits(p)), None)
    if base is None:
        pytest.skip(f"the wheels of {oracle} need Python 3.10 or 3.11")
    folder = CACHE / oracle
    python, stamp = folder / "bin" / "python", folder / "installed"
    wanted = "\n".join(REQUIREMENTS[oracle])
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / f"{oracle}.lock"):  # several workers may ask at once
        if not stamp.is_file() or stamp.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([base, "-m", "venv", folder], check=True)
            subprocess.run([python, "-m", "pip", "install", "--quiet", *REQUIREMENTS[oracle]], check=True)
            stamp.write_text(wanted)
    return python


def _fits(python: str) -> bool:
    code = "import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))"
    return subprocess.run([python, "-c", code], capture_output=True).returncode == 0
