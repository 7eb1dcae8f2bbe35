"""Scripts that run as several gloo processes on this machine, as paddle.distributed.launch starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent


def run_ranks(processes: int, script: str, *words: str | Path, logs: Path) -> None:
    """Run `script` of this folder with as many ranks; 1 runs it without a launcher."""
    command = [sys.executable, str(HERE / script), *map(str, words)]
    if processes > 1:
        launch = [sys.executable, "-m", "paddle.distributed.launch", "--nproc_per_node", str(processes)]
        command = [*launch, "--log_level", "ERROR", "--log_dir", str(logs), *command[1:]]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PADDLE_")}
    environment |= {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    details = "".join(log.read_text() for log in logs.glob("workerlog.*")) if logs.is_dir() else ""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:] + details[-4000:]
