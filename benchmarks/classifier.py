"""A classifier over a million classes, of which each step draws a tenth, on this machine.

    python benchmarks/classifier.py DATA [--classes 1000000]

DATA is a data set of lists, whose training images stand for those of all classes. Prints the table of
benchmarks/README.md: whole trainings of PP-ShiTuV2_rec at 32 px, with as many classes and with a thousand, whose
difference is the classifier's; and how long a checkpoint holds training up.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
BATCH, DIMENSION, RATE = 128, 512, 0.1
STEPS = 40
FEW = 1000
SETTINGS = (
    "Global.mode=train",
    "Global.device=cpu",
    "Train.pretrain_weight_path=null",
    "Train.input_size=32",
    f"Train.batch_size={BATCH}",
    "Train.samples_per_class=null",
    "Train.loss.triplet_weight=0",
    "Train.log_interval=1",
    "Model.head=arc_margin",
    f"Model.head_sample={RATE}",
)


def lists_of(data: Path, folder: Path, classes: int) -> Path:
    """A data set of `classes` classes of one image each."""
    folder.mkdir()
    files = [str(data.resolve() / line.split()[0]) for line in (data / "train.txt").read_text().splitlines()]
    names = (f"{files[number % len(files)]} {number}\n" for number in range(max(classes, BATCH * STEPS)))
    (folder / "train.txt").write_text(
        "".join(n if i < classes else f"{n.split()[0]} {i % classes}\n" for i, n in enumerate(names))
    )
    for name in ("gallery", "query"):
        rows = (data / f"{name}.txt").read_text().splitlines()[:100]
        (folder / f"{name}.txt").write_text("".join(f"{data.resolve()}/{row}\n" for row in rows))
    return folder


def run(data: Path, output: Path) -> tuple[float, float, int]:
    """Seconds to the first step, seconds of a step, and the KiB that the process takes, of STEPS steps."""
    words = [w for s in (*SETTINGS, f"Global.dataset_dir={data}", f"Global.output={output}") for w in ("-o", s)]
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "main.py"), "-c", "PP-ShiTuV2_rec", *words], stderr=subprocess.DEVNULL
    )
    metrics, first, resident, rows = output / "metrics.jsonl", 0.0, 0, list[dict[str, float]]()
    while process.poll() is None and len(rows) < STEPS:
        time.sleep(0.2)
        if metrics.is_file():
            rows = [json.loads(line) for line in metrics.read_text().splitlines() if line.endswith("}")]
        first = first or (time.monotonic() - began if rows else 0.0)
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = max(resident, *map(int, re.findall(r"VmHWM:\s*(\d+)", status)))
    process.send_signal(signal.SIGKILL)
    process.wait()
    return first, statistics.median(BATCH / row["images_per_second"] for row in rows[3:]), resident


def held_up(classes: int) -> float:
    """Seconds that a checkpoint of the class vectors and their momentum holds training up."""
    from paddlex_feat.models.class_scores import ClassScores
    from paddlex_feat.runtime.distributed import ProcessGroup
    from paddlex_feat.training.classifier import head_file
    from paddlex_feat.training.classifier.class_rows import ClassRows
    from paddlex_feat.training.classifier.part import Part
    from paddlex_feat.training.classifier.row_rules import MomentumRows
    from paddlex_feat.training.classifier.sampled import SampledClassifier

    vectors = np.ones((classes, 1, DIMENSION), np.float32)
    rows = ClassRows(vectors, ClassScores(), MomentumRows(0.9, 0.0), threads=1)
    rows.states["velocity"][:] = 0.5
    classifier, seconds = SampledClassifier(rows, Part(classes, ProcessGroup()), RATE, 0), list[float]()
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        for number in range(3):
            began = time.monotonic()
            head_file.write(Path(folder) / f"{number % 2}", classifier)
            seconds.append(time.monotonic() - began)
    return statistics.median(seconds)


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--classes", type=int, default=1_000_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sets = [lists_of(given.data, Path(folder) / str(count), count) for count in (FEW, given.classes)]
        few, many = (run(data, Path(folder) / f"run{number}") for number, data in enumerate(sets))
        print(f"{given.classes} classes x {DIMENSION}, {RATE:g} of them drawn, batch {BATCH}")
        print(f"first step after {many[0]:.1f} s ({few[0]:.1f} with {FEW} classes)")
        print(f"step {many[1]:.3f} s, {many[1] - few[1]:.3f} more than with {FEW} classes")
        weights = given.classes * DIMENSION * 4
        print(f"memory {many[2] / 2**10:.0f} MiB, {1024 * many[2] / weights:.2f} times the weights")
        seconds = held_up(given.classes)
        print(f"a checkpoint holds up for {seconds:.1f} s, {seconds / 1000 / many[1]:.2%} of 1,000 steps")


if __name__ == "__main__":
    main()
