"""Batches by threads and by processes: images a second, and how long 600 operators take beside them.

    python benchmarks/loader.py                 simulated decoders, as on a machine with more cores than this one
    python benchmarks/loader.py files           real files, all cores of this machine
    python benchmarks/loader.py cost            Python time of a sample

Simulated are the calls of OpenCV alone: each sleeps without Python's lock for as long as it takes on one core for
a 640 x 480 JPEG and 224 px. All that is Python runs, reads files, and shares this machine's cores.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import cv2
import numpy as np

from paddlex_feat.pipeline.augment import Augment
from paddlex_feat.pipeline.cache import ImageCache
from paddlex_feat.pipeline.loader import training_batches
from paddlex_feat.pipeline.preprocess import Preprocess
from paddlex_feat.pipeline.processes import DecodingProcesses

SIZE, BATCH, FILES = 224, 128, 512
OPERATORS, TURNS, SECONDS = 600, 40, 4.0
DECODE, TRANSFORM = 1.25e-3, 0.25e-3  # seconds in OpenCV
Batches = Iterator[tuple[np.ndarray, np.ndarray]]


class Simulated(Augment):
    """Augmentation whose OpenCV sleeps; `decode` is what decoding takes, 0 where images come from the cache."""

    def read(self, *arguments: object) -> np.ndarray:
        """As Augment.read."""
        if cv2.imdecode is not sleeping_decoder:
            simulate()
        return super().read(*arguments)


class SimulatedSmall(Augment):
    """As Simulated, of files that are decoded in a tenth of the time: 160 x 160 pixels."""

    def read(self, *arguments: object) -> np.ndarray:
        """As Augment.read."""
        if cv2.imdecode is not sleeping_decoder:
            simulate(DECODE / 10)
        return super().read(*arguments)


def sleeping_decoder(buffer: np.ndarray, flags: int) -> np.ndarray:
    """In the place of cv2.imdecode."""
    time.sleep(_decode)
    return _image


def simulate(decode: float = DECODE) -> None:
    """Replace OpenCV's functions in this process."""
    global _decode
    _decode = decode

    def transform(*_: object, **__: object) -> np.ndarray:
        time.sleep(TRANSFORM)
        return _small

    cv2.imdecode = sleeping_decoder
    cv2.resize = cv2.warpAffine = transform
    cv2.flip = cv2.cvtColor = lambda image, *_, **__: image


_decode = DECODE
_image, _small = np.zeros((480, 640, 3), np.uint8), np.zeros((SIZE, SIZE, 3), np.uint8)


def make_files(folder: Path, count: int, height: int = 480, width: int = 640) -> list[str]:
    """JPEG files with structure."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        noise = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
        paths.append(str(folder / f"{i}.jpg"))
        cv2.imwrite(paths[-1], cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC))
    return paths


def order(images: int, batches: int) -> list[np.ndarray]:
    """Indices of batches."""
    rng = np.random.default_rng(1)
    return [rng.integers(0, images, BATCH) for _ in range(batches)]


def rate_of(stream: Batches, seconds: float = SECONDS) -> float:
    """Images a second, after two batches that are not counted."""
    next(stream)
    next(stream)
    count, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        count += len(next(stream)[0])
    return count / (time.perf_counter() - started)


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
    try:
        for _ in range(TURNS + 3):
            started = time.perf_counter()
            value = tensor
            for _ in range(OPERATORS):
                value = value + 1.0
            times.append(1000 * (time.perf_counter() - started))
    finally:
        ended.set()
        taker.join()
    return statistics.median(times[3:]), max(times[3:])


def simulated() -> None:
    """Table of threads and processes with sleeping decoders."""
    print("| decoders | images/s, files of 640 x 480 | of 160 x 160 or cached | 600 launches, median | worst |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        paths = make_files(Path(temporary), FILES)
        batches, preprocess = order(FILES, 4000), Preprocess(SIZE)
        print("| none | | | {:.1f} ms | {:.1f} ms |".format(*launches(None)), flush=True)

        def streams(kind: str, count: int, augment: Augment, stack: ExitStack) -> Callable[[], Batches]:
            if kind == "threads":
                simulate(DECODE / 10 if isinstance(augment, SimulatedSmall) else DECODE)
                return lambda: training_batches(batches, paths, preprocess, augment, (1, 2, 3), count)
            pool = DecodingProcesses(count, BATCH, augment, preprocess, ImageCache(0))
            stack.callback(pool.close)
            pool.wait_until_ready()
            return lambda: pool.batches(batches, paths, (1, 2, 3))

        for kind, count in (
            *(("threads", n) for n in (2, 4, 8, 16, 32)),
            *(("processes", n) for n in (4, 8, 16)),
        ):
            rates = []
            for augment in (Simulated(), SimulatedSmall()):
                with ExitStack() as stack:
                    stream = streams(kind, count, augment, stack)()
                    rates.append(rate_of(stream))
                    stream.close()
            with ExitStack() as stack:
                stream = streams(kind, count, Simulated(), stack)()
                next(stream)
                median, worst = launches(stream)
                stream.close()
            print(
                f"| {count} {kind} | {rates[0]:.0f} | {rates[1]:.0f} | {median:.1f} ms | {worst:.1f} ms |", flush=True
            )


def files() -> None:
    """Table of two threads and two processes with real files, in turn."""
    print("| files | 2 threads | 2 processes |\n|---|---|---|")
    for height, width, count in ((480, 640, 200), (160, 160, 800)):
        with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
            paths, preprocess = make_files(Path(temporary), count, height, width), Preprocess(SIZE)
            pool = DecodingProcesses(2, BATCH, Augment(), preprocess, ImageCache(0))
            stack.callback(pool.close)
            pool.wait_until_ready()
            batches = order(count, 4000)
            rates: tuple[list[float], list[float]] = ([], [])
            for _ in range(3):
                for own, stream in zip(
                    rates,
                    (
                        training_batches(batches, paths, preprocess, Augment(), (1, 2, 3), 2),
                        pool.batches(batches, paths, (1, 2, 3)),
                    ),
                    strict=True,
                ):
                    own.append(rate_of(stream))
                    stream.close()
            medians = [f"{statistics.median(own):.0f} images/s" for own in rates]
            print(f"| {count} JPEG files of {width} x {height} | {medians[0]} | {medians[1]} |", flush=True)


def cost() -> None:
    """Python time of a sample on one thread: all that is done with Python's lock, and some system calls."""
    with tempfile.TemporaryDirectory() as temporary:
        paths = make_files(Path(temporary), 64)
        simulate()
        augment, preprocess = Augment(), Preprocess(SIZE)
        globals()["_decode"] = 0.0
        cv2.imdecode = lambda *_: _image
        cv2.resize = cv2.warpAffine = lambda *_, **__: _small
        rate = rate_of(training_batches(order(64, 4000), paths, preprocess, augment, (1, 2, 3), 1))
        print(f"{1e6 / rate:.0f} µs a sample, of one thread that hands over batches of {BATCH}")


if __name__ == "__main__":
    import loader  # as decoding processes import it, which unpickle its classes

    chosen = sys.argv[1] if len(sys.argv) > 1 else "simulated"
    {"simulated": loader.simulated, "files": loader.files, "cost": loader.cost}[chosen]()
