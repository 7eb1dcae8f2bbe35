"""Batches by threads and by processes: images a second, and how long 600 operators take beside them.

    python benchmarks/loader.py                 simulated decoders, as on a machine with more cores than this one
    python benchmarks/loader.py files           real files, two threads and two processes
    python benchmarks/loader.py cost            Python time of a sample

Only OpenCV is simulated: each call sleeps, without Python's lock, for as long as it takes on one core. All that is
Python runs, reads files, and shares this machine's cores; so a rate is also given that follows from the CPU time
measured, for a machine with a core for each process.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.loading.loader import training_batches
from paddlex_feat.data.loading.processes import DecodingProcesses

SIZE, BATCH, FILES = 224, 128, 512
OPERATORS, TURNS, SECONDS = 600, 40, 3.0
LARGE, SMALL, TRANSFORM = 1.25e-3, 0.1e-3, 0.25e-3  # seconds in OpenCV: to decode 640 x 480, 160 x 160; to augment
Batches = Generator[tuple[np.ndarray, np.ndarray], None, None]
KEY = (1, 2, 3)
IMAGE, RESULT = np.zeros((480, 640, 3), np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8)


@dataclass(frozen=True)
class Simulated(Augment):
    """Augmentation in a process whose OpenCV sleeps: `decoding` seconds an image, TRANSFORM for the rest."""

    decoding: float = LARGE
    transform: float = TRANSFORM

    def read(self, *arguments: Any) -> np.ndarray:
        """As Augment.read."""
        if vars(cv2).get("simulated") != self:
            self.simulate()
        return super().read(*arguments)

    def simulate(self) -> None:
        """Replace OpenCV's functions in this process."""

        def decode(*_: Any) -> np.ndarray:
            if self.decoding:
                time.sleep(self.decoding)
            return IMAGE

        def transform(*_: Any, **__: Any) -> np.ndarray:
            if self.transform:
                time.sleep(self.transform)
            return RESULT

        def nothing(image: np.ndarray, *_: Any, **__: Any) -> np.ndarray:
            return image

        functions = {"imdecode": decode, "resize": transform, "warpAffine": transform}
        vars(cv2).update(functions, flip=nothing, cvtColor=nothing, simulated=self)


def make_files(folder: Path, count: int, height: int = 480, width: int = 640) -> list[str]:
    """JPEG files with structure."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        noise = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        paths.append(str(folder / f"{i}.jpg"))
        cv2.imwrite(paths[-1], cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))
    return paths


def order(images: int) -> list[np.ndarray]:
    """Indices of more batches than are taken."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, images, BATCH) for _ in range(4000)]


@contextmanager
def loading(kind: str, count: int, paths: list[str], augment: Augment) -> Iterator[tuple[Batches, list[int]]]:
    """Batches by so many threads or processes, and the ids of the processes."""
    if kind == "threads":
        stream = training_batches(order(len(paths)), paths, Preprocess(SIZE), augment, KEY, count)
        yield stream, []
        stream.close()
        return
    processes = DecodingProcesses(count, BATCH, augment, Preprocess(SIZE), ImageCache(0))
    processes.wait_until_ready()
    stream = processes.batches(order(len(paths)), paths, KEY)
    yield stream, [child.pid for child in processes._children]
    stream.close()
    processes.close()


def cpu_seconds(pids: list[int]) -> float:
    """CPU time that processes have taken."""
    fields = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids]
    return sum(int(f[11]) + int(f[12]) for f in fields) / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Rate:
    """Images a second; CPU seconds an image of this process and of the decoding processes."""

    images: float
    here: float
    there: float


def rate_of(stream: Batches, pids: list[int]) -> Rate:
    """After two batches that are not counted."""
    next(stream)
    next(stream)
    count, started, here, there = 0, time.perf_counter(), time.process_time(), cpu_seconds(pids)
    while time.perf_counter() - started < SECONDS:
        count += len(next(stream)[0])
    seconds = time.perf_counter() - started
    return Rate(count / seconds, (time.process_time() - here) / count, (cpu_seconds(pids) - there) / count)


@contextmanager
def one_processor_for_this_process(pids: list[int]) -> Iterator[None]:
    """Keep decoding processes off one processor, as their default number does on a machine with enough of them."""
    first, *others = sorted(os.sched_getaffinity(0))
    if pids and others:
        os.sched_setaffinity(0, {first})
        for pid in pids:
            os.sched_setaffinity(pid, others)
    try:
        yield
    finally:
        os.sched_setaffinity(0, {first, *others})


def launches(stream: Batches | None) -> tuple[float, float]:
    """Median and longest time of OPERATORS small operators of Paddle, in ms, while a thread takes all batches."""
    import paddle

    tensor, ended = paddle.zeros([16]), threading.Event()

    def take() -> None:
        while stream is not None and not ended.is_set():
            next(stream)

    taker = threading.Thread(target=take)
    taker.start()
    times = []
    for _ in range(TURNS + 3):
        started = time.perf_counter()
        value = tensor
        for _ in range(OPERATORS):
            value = value + 1.0
        times.append(1000 * (time.perf_counter() - started))
    ended.set()
    taker.join()
    return statistics.median(times[3:]), max(times[3:])


def simulated(paths: list[str]) -> None:
    """Table of threads and processes with sleeping decoders."""
    print("600 launches alone: median {:.1f} ms, worst {:.1f} ms\n".format(*launches(None)))
    print(
        "| decoders | OpenCV, ms an image | images/s here | CPU µs an image: this process, the others | "
        "images/s with a core for each process | 600 launches, median | worst |\n|---|---|---|---|---|---|---|"
    )
    for kind, counts in (("threads", (2, 3, 8, 16, 32)), ("processes", (3, 7, 16))):
        for count in counts:
            for decoding in (LARGE, SMALL):
                augment = Simulated(decoding=decoding)
                with loading(kind, count, paths, augment) as (stream, pids):
                    rate = rate_of(stream, pids)
                    with one_processor_for_this_process(pids):
                        median, worst = launches(stream)
                opencv = decoding + TRANSFORM
                bound = f"{min(count / (opencv + rate.there), 1 / rate.here):.0f}" if pids else ""
                print(
                    f"| {count} {kind} | {1000 * opencv:.2f} | {rate.images:.0f} | {1e6 * rate.here:.0f}, "
                    f"{1e6 * rate.there:.0f} | {bound} | {median:.1f} ms | {worst:.1f} ms |",
                    flush=True,
                )


def real(folder: Path) -> None:
    """Table of two threads and two processes with real files, in turn."""
    print("| files | 2 threads | 2 processes |\n|---|---|---|")
    for height, width, count in ((480, 640, 200), (160, 160, 800)):
        own = folder / f"{width}"
        own.mkdir()
        paths = make_files(own, count, height, width)
        rates: dict[str, list[float]] = {"threads": [], "processes": []}
        for _ in range(3):
            for kind, values in rates.items():
                with loading(kind, 2, paths, Augment()) as (stream, pids):
                    values.append(rate_of(stream, pids).images)
        medians = (f"{statistics.median(values):.0f} images/s" for values in rates.values())
        print(f"| {count} JPEG files of {width} x {height} | {' | '.join(medians)} |", flush=True)


def cost(paths: list[str]) -> None:
    """Python time of a sample: all that is done with Python's lock, reading the file, and copying the result."""
    for kind in ("threads", "processes"):
        with loading(kind, 1, paths, Simulated(decoding=0, transform=0)) as (stream, pids):
            rate = rate_of(stream, pids)
        print(f"1 of {kind}: {1e6 * rate.here:.0f} µs an image in this process, {1e6 * rate.there:.0f} in the other")


def main(chosen: str = "simulated") -> None:
    """Measure one of the three."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if chosen == "files":
            real(folder)
        else:
            {"simulated": simulated, "cost": cost}[chosen](make_files(folder, FILES))


if __name__ == "__main__":
    import loader  # under the name by which decoding processes import it

    loader.main(*sys.argv[1:])
