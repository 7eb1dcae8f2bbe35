"""How features are computed and written at scale, on this machine.

    python benchmarks/scale.py DATA [--rows 10000000]

DATA is a data set. Prints the table of benchmarks/README.md: two processes against one, shards that are killed, a
Parquet file of many features, and tar shards against loose files. Ratios are taken pair by pair; medians are quoted.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODEL = "EfficientNet_Lite0_rec"
PAIRS = 5
KILL_SECONDS = 30
PARTS = 24  # shards of the job that is killed
DIMENSION = 512


def command(output: Path, data: Path, *settings: str) -> list[str]:
    """A run of predict over the images of a data set."""
    every = ("Global.mode=predict", f"Global.output={output}", "Predict.model_dir=null", f"Predict.input={data}")
    words = [w for s in (*every, "Predict.save_format=npz", *settings) for w in ("-o", s)]
    return [sys.executable, str(ROOT / "main.py"), "-c", MODEL, *words]


def rate(output: Path, data: Path, device: str) -> float:
    """Images/s that a run logs, which leaves its start out."""
    subprocess.run(command(output, data, f"Global.device={device}"), check=True, capture_output=True)
    logs = [output / "predict.log", *(output / "distributed_predict_logs").glob("workerlog.0")]
    log = "".join(file.read_text() for file in logs)
    return float(log.rpartition(" images/s")[0].rpartition(" ")[2])


def two_against_one(data: Path) -> tuple[float, float, float]:
    """Images/s of one process and of two, and the median ratio."""
    ones, twos = list[float](), list[float]()
    for _ in range(PAIRS):
        with tempfile.TemporaryDirectory() as folder:
            ones.append(rate(Path(folder) / "one", data, "cpu"))
            twos.append(rate(Path(folder) / "two", data, "cpu:0,1"))
    ratio = statistics.median(two / one for one, two in zip(ones, twos, strict=True))
    return statistics.median(ones), statistics.median(twos), ratio


def killed_shards(data: Path) -> float:
    """Seconds of all shards, one after the other, killed every KILL_SECONDS, in parts of those without a kill."""

    def run(output: Path, kills: bool) -> float:
        started, since = time.monotonic(), time.monotonic()
        for number in range(PARTS):
            while True:
                words = command(output, data, f"Predict.shard={number}/{PARTS}", "Global.device=cpu")
                process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
                left = max(0.0, KILL_SECONDS - (time.monotonic() - since)) if kills else None
                try:
                    process.wait(left)
                    break
                except subprocess.TimeoutExpired:
                    process.send_signal(signal.SIGKILL)
                    process.wait()
                    since = time.monotonic()
        return time.monotonic() - started

    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder) / "killed", True) / run(Path(folder) / "whole", False)


def parquet_memory(rows: int) -> tuple[float, float]:
    """Seconds for a Parquet file of so many features, and the MiB that the process takes at most."""
    code = (
        "import sys, pathlib, resource; import numpy as np\n"
        "from paddlex_feat.inference.writers import feature_file\n"
        f"block = np.random.default_rng(0).standard_normal((4096, {DIMENSION}), np.float32)\n"
        "with feature_file(pathlib.Path(sys.argv[1])) as file:\n"
        f"    for n in range({rows}):\n"
        "        file.add_row({'input_path': f'photos/{n:09d}.jpg'}, block[n % 4096])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    with tempfile.TemporaryDirectory(dir=os.environ.get("SCALE_FOLDER")) as folder:
        started = time.monotonic()
        words = [sys.executable, "-c", code, f"{folder}/features.parquet"]
        done = subprocess.run(
            words, check=True, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}
        )
        return time.monotonic() - started, float(done.stdout)


def tar_against_files(data: Path) -> float:
    """The loader's rate on tar shards in parts of that on the same images as files, median of pairs."""
    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.data.loading.loader import evaluation_batches
    from paddlex_feat.data.pack import pack
    from paddlex_feat.data.readers import require_lists

    def seconds(folder: Path) -> float:
        files = require_lists(str(folder), ("train",))["train"].files()
        started = time.monotonic()
        for _ in evaluation_batches(files, Preprocess(size=64), 64, 2, 0, 1):
            pass
        return time.monotonic() - started

    with tempfile.TemporaryDirectory() as folder:
        packed = Path(folder) / "packed"
        pack(data, packed)
        seconds(data), seconds(packed)  # both are in the system's cache then
        return statistics.median(seconds(data) / seconds(packed) for _ in range(4 * PAIRS))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--only", choices=("two", "killed", "parquet", "tar"))
    given = parser.parse_args()
    print("| what | measured | asked |", "|---|---|---|", sep="\n", flush=True)

    def show(name: str, row: Callable[[], str]) -> None:
        if given.only in (None, name):
            print(row(), flush=True)

    def two() -> str:
        one, both, ratio = two_against_one(given.data)
        return f"| predict in one process and in two | {one:.1f} and {both:.1f} images/s, {ratio:.2f} | at least 0.95 |"

    def parquet() -> str:
        seconds, mib = parquet_memory(given.rows)
        return f"| {given.rows:,} features to Parquet | {seconds:.0f} s, {mib:.0f} MiB | at most 500 MiB |"

    show("two", two)
    show("killed", lambda: f"| {PARTS} shards, killed every 30 s | {killed_shards(given.data):.2f} | at most 1.1 |")
    show("parquet", parquet)
    show(
        "tar",
        lambda: f"| loading from tar shards against files | {tar_against_files(given.data):.2f} | at least 0.95 |",
    )


if __name__ == "__main__":
    main()
