"""How fast check_dataset is, beside the rate of a bare decoding loop on the same files.

    python benchmarks/check_dataset.py [images]

Prints the table of benchmarks/README.md. Ratios are taken pair by pair in one run; medians are quoted.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from paddlex_feat.checks.inspection import inspect_all
from paddlex_feat.data.images.opencv import cv2  # with its limit of pixels, as in main.py
from paddlex_feat.runtime.cpu import cpu_count

ROOT = Path(__file__).resolve().parent.parent
PAIRS = 5
LINES = 1_000_000
SIZE = (600, 800)


def make_images(folder: Path, count: int) -> list[str]:
    """JPEG files of 800 x 600 with edges, texture and noise, about 100 KB each, all different."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        coarse = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
        image = cv2.resize(coarse, SIZE[::-1], interpolation=cv2.INTER_CUBIC).astype(np.int16)
        image += rng.normal(0, 6, (*SIZE, 1)).astype(np.int16)
        path = folder / f"{i:05d}.jpg"
        cv2.imwrite(str(path), np.clip(image, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 88])
        paths.append(str(path))
    return paths


def bare(paths: list[str], workers: int) -> float:
    """Seconds to read and decode every file, and nothing else, on all cores."""

    def decode(path: str) -> None:
        if cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR) is None:
            raise ValueError(path)

    cv2.setNumThreads(1)
    started = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(decode, paths):
            pass
    return time.perf_counter() - started


def inspected(paths: list[str], workers: int) -> float:
    """Seconds of check_dataset's inspection of the same files, with nothing remembered."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["PADDLE_PDX_CACHE_HOME"] = cache
        started = time.perf_counter()
        info = inspect_all(paths, workers)
        seconds = time.perf_counter() - started
    if any(f.error for f in info.values()):
        raise ValueError("a sound image was found faulty")
    return seconds


def command(data: Path, output: Path, cache: Path, *overrides: str) -> tuple[float, float]:
    """Wall seconds and peak MiB of `main.py` in mode check_dataset."""
    settings = (f"Global.dataset_dir={data}", f"Global.output={output}", *overrides)
    words = [word for setting in settings for word in ("-o", setting)]
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, ROOT / "main.py", "-c", "PP-ShiTuV2_rec", *words],
        env={**os.environ, "PADDLE_PDX_CACHE_HOME": str(cache)},
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError("the command failed")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def write_lists(folder: Path, files: list[str], classes: int) -> None:
    """70 % train, 15 % gallery, 15 % query; labels in turn."""
    cuts = (int(len(files) * 0.7), int(len(files) * 0.85))
    for name, part in zip(("train", "gallery", "query"), np.split(np.arange(len(files)), cuts), strict=True):
        (folder / f"{name}.txt").write_text("".join(f"{files[i]} {i % classes}\n" for i in part))


def row(what: str, value: str, target: str) -> None:
    """One line of the table."""
    print(f"| {what} | {value} | {target} |", flush=True)


def main(count: int) -> None:
    """Measure and print."""
    workers = cpu_count()
    print(
        f"{workers} cores, {count} JPEG files of 800 x 600, {PAIRS} pairs\n\n| what | measured | asked |\n|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "set"
        folder.mkdir()
        paths = make_images(folder, count)
        bare(paths, workers)  # the files are in the system's cache from here on
        pairs = [(bare(paths, workers), inspected(paths, workers)) for _ in range(PAIRS)]
        rates = [count / statistics.median(side) for side in zip(*pairs, strict=True)]
        row("bare loop of cv2.imdecode", f"{rates[0]:.0f} images/s", "")
        row("inspection by check_dataset", f"{rates[1]:.0f} images/s", "")
        row("ratio, median of pairs", f"{statistics.median(b / i for b, i in pairs):.2f}", "at least 0.85")

        write_lists(folder, [Path(p).name for p in paths], 50)
        ratios = []
        for i in range(3):
            cache = Path(temporary) / f"cache{i}"
            first, second = (command(folder, Path(temporary) / "out", cache)[0] for _ in range(2))
            ratios.append((second / first, first, second))
        ratio, first, second = sorted(ratios)[1]
        row("whole command, first and second run", f"{first:.2f} s and {second:.2f} s", "")
        row("second run / first run, median", f"{ratio:.3f}", "at most 0.1")

        shutil.rmtree(folder)
        folder.mkdir()
        write_lists(folder, [f"images/{i % 997:03d}/{i:07d}.jpg" for i in range(LINES)], 50_000)
        runs = [command(folder, Path(temporary) / "out", cache, "CheckDataset.decode=none") for _ in range(3)]
        seconds, peak = (statistics.median(side) for side in zip(*runs, strict=True))
        row(f"{LINES:,} lines, images skipped", f"{seconds:.1f} s, {peak:.0f} MiB", "under 20 s and 1024 MiB")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
