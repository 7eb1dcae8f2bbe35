"""How fast a list of images becomes features on a CPU: Paddle's dynamic graph, our engine, and `embed` from files.

    python benchmarks/embedding.py [images] [rounds]

Prints a table. PP-ShiTuV2_rec at 224 px with random weights, batches of 64, JPEG photographs of 640 x 480.
A round takes each in turn: both forms of the dynamic graph in processes of their own, then engine, `embed` and the
bare decode loop, which is the limit of reading files, several times. Medians of the turns' ratios are quoted.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
SIZE, BATCH, WIDTH, HEIGHT = 224, 64, 640, 480
IMAGES, ROUNDS, TURNS = 640, 3, 3  # a count of images that batches divide
PLAIN_BATCHES = 1  # of the dynamic graph, which is slow; the others take the whole list


def make_photographs(folder: Path, count: int, width: int = WIDTH, height: int = HEIGHT) -> None:
    """JPEGs with the size in bytes of photographs: soft shapes, texture, noise of a sensor."""
    rng = np.random.default_rng(0)
    for number in range(count):
        image = np.zeros((height, width, 3))
        for cells, depth in ((5, 90), (40, 40), (160, 15)):
            shape = (cells * height // width + 1, cells, 3)
            image += cv2.resize(rng.normal(0, depth, shape), (width, height), interpolation=cv2.INTER_CUBIC)
        image += 128 + rng.normal(0, 4, (height, width, 1))
        pixels = np.clip(image, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), pixels, [cv2.IMWRITE_JPEG_QUALITY, 90])


def make_model(folder: Path) -> None:
    """An inference directory with random weights."""
    from paddlex_feat.runtime.paddle_import import prepare_paddle

    prepare_paddle()
    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.inference.export.exporter import Exporter
    from paddlex_feat.models import recognizer
    from paddlex_feat.models.spec import NetworkSpec

    network = recognizer.build(NetworkSpec(), 1)
    Exporter(network, "PP-ShiTuV2_rec", Preprocess(SIZE)).write(network.state_dict(), folder)


def dynamic_graph(threads: int) -> float:
    """Images/s of the plain network in evaluation mode on tensors that are ready."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import paddle

    from paddlex_feat.models import recognizer
    from paddlex_feat.models.spec import NetworkSpec

    network = recognizer.build(NetworkSpec(), 1)
    network.eval()
    x = paddle.rand([BATCH, 3, SIZE, SIZE])
    with paddle.no_grad():
        network(x[:4])
        started = time.perf_counter()
        for _ in range(PLAIN_BATCHES):
            network(x).numpy()
    return PLAIN_BATCHES * BATCH / (time.perf_counter() - started)


def engine_and_embed(model: Path, photographs: Path) -> None:
    """Print, for each turn, images/s of the engine on ready tensors, of `embed` from files, of decoding alone."""
    from paddlex_feat.runtime.cpu import cpu_count
    from paddlex_feat.runtime.paddle_import import prepare_paddle

    prepare_paddle()
    from paddlex_feat.data.loading.loader import evaluation_batches
    from paddlex_feat.evaluation.embed import embed
    from paddlex_feat.inference.engines import EngineOptions
    from paddlex_feat.inference.engines.paddle_engine import PaddleEngine
    from paddlex_feat.inference.extractor import FeatureExtractor

    files, workers = [str(f) for f in sorted(photographs.iterdir())], cpu_count()
    engine, extract = PaddleEngine(model, EngineOptions(device="cpu")), FeatureExtractor(model)
    first = next(evaluation_batches(files, extract.preprocess, BATCH, workers))[1]
    ready = extract.preprocess.normalise(first)
    engine.run(ready)  # oneDNN sets itself up
    extract(first)

    def rate(work: Callable[[], object]) -> float:
        started = time.perf_counter()
        work()
        return len(files) / (time.perf_counter() - started)

    for _ in range(TURNS):
        own = rate(lambda: [engine.run(ready) for _ in range(len(files) // BATCH)])
        whole = rate(lambda: embed(extract, files, BATCH, workers))
        decode = rate(lambda: [len(x) for _, x in evaluation_batches(files, extract.preprocess, BATCH, workers)])
        print(own, whole, decode, flush=True)


def in_process(*words: object) -> list[list[float]]:
    """Rows of figures from a process of its own, without settings that would change Paddle's defaults."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "FLAGS_", "PADDLE_"))}
    environment = {**kept, "PYTHONPATH": str(ROOT), "GLOG_minloglevel": "2"}
    command = [sys.executable, __file__, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return [[float(word) for word in line.split()] for line in done.stdout.splitlines()]


def measure(images: int, count: int) -> None:
    """Print the table."""
    rounds = []
    with tempfile.TemporaryDirectory() as temporary:
        photographs, model = Path(temporary) / "images", Path(temporary) / "model"
        photographs.mkdir()
        make_photographs(photographs, images)
        in_process("make_model", model)
        mean = sum(f.stat().st_size for f in photographs.iterdir()) / images
        for number in range(count):
            one, every = (in_process("dynamic_graph", threads)[-1][0] for threads in (1, os.cpu_count()))
            for row in in_process("engine_and_embed", model, photographs)[-TURNS:]:
                rounds.append((one, every, *row))
                print(f"round {number + 1}:", *(f"{r:.1f}" for r in rounds[-1]), file=sys.stderr, flush=True)
    what = f"{images} JPEGs of {WIDTH} x {HEIGHT}, {mean / 1024:.0f} KiB each"
    print(f"\n{what}; {os.cpu_count()} cores; {count} rounds of {TURNS} turns\n")
    print("| what | images/s | `embed` is, median of turns | asked |\n|---|---|---|---|")
    names = (
        ("dynamic graph, Paddle's default of 1 thread, ready tensors", "at least 5"),
        ("dynamic graph, all threads, ready tensors", "at least 5"),
        ("engine, ready tensors", "at least 0.9"),
        ("`embed`, from files", ""),
        ("decoding and resizing alone, the same files", ""),
    )
    for column, (name, asked) in enumerate(names):
        rate = statistics.median(r[column] for r in rounds)
        ratio = statistics.median(r[3] / r[column] for r in rounds)
        print(f"| {name} | {rate:.1f} | {ratio:.2f} of it | {asked} |")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["make_model", folder]:
            make_model(Path(folder))
        case ["dynamic_graph", threads]:
            print(dynamic_graph(int(threads)))
        case ["engine_and_embed", model, photographs]:
            engine_and_embed(Path(model), Path(photographs))
        case numbers:
            measure(*[*map(int, numbers), *(IMAGES, ROUNDS)[len(numbers) :]])
