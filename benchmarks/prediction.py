"""How fast `predict` is on large JPEGs against the engine alone, and what fast decoding costs in likeness.

    python benchmarks/prediction.py [images rounds [weights.pdparams]]

Prints two tables. PP-ShiTuV2_rec at 224 px, random weights for the rates, batches of 16, JPEGs of 1365 x 1024. With a
weight file (of any input size) also the cosines between fast and exact features, on those photographs and on
the faces of dataset/ORL_faces, enlarged by cubic interpolation, with noise.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from embedding import ROOT, SIZE, make_model, make_photographs

WIDTH, HEIGHT, BATCH = 1365, 1024, 16
FACES = 48


def make_faces(folder: Path) -> None:
    """Upright JPEGs of the same area as the photographs."""
    from paddlex_feat.data.images.decode import read_bgr

    rng = np.random.default_rng(2)
    files = sorted((ROOT / "dataset" / "ORL_faces" / "images").rglob("*.pgm"))
    for number, file in enumerate(files[:: max(1, len(files) // FACES)][:FACES]):
        image = cv2.resize(read_bgr(file), (HEIGHT, WIDTH), interpolation=cv2.INTER_CUBIC)
        noisy = np.clip(image + rng.normal(0, 4, (WIDTH, HEIGHT, 1)), 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / f"{number:05d}.jpg"), noisy, [cv2.IMWRITE_JPEG_QUALITY, 90])


def rates(model: Path, photographs: Path, rounds: int) -> None:
    """Print images/s, each way in turn."""
    from paddlex_feat import create_model
    from paddlex_feat.data.loading.loader import evaluation_batches
    from paddlex_feat.inference.engines import CPU_MICRO_BATCH
    from paddlex_feat.runtime.cpu import cpu_count

    files = [str(f) for f in sorted(photographs.iterdir())]
    exact, fast = (
        create_model("PP-ShiTuV2_rec", model, device="cpu", batch_size=BATCH, fast_decode=f) for f in (False, True)
    )
    extractor = exact._extractor
    pixels = next(evaluation_batches(files, extractor.preprocess, BATCH, cpu_count()))[1]
    ready = extractor.preprocess.normalise(pixels)
    ways: dict[str, Callable[[], object]] = {
        "engine, ready tensors": lambda: [
            extractor.engine.run(ready[first : first + CPU_MICRO_BATCH])  # as the predictor gives them to the engine
            for _ in range(len(files) // BATCH)
            for first in range(0, BATCH, CPU_MICRO_BATCH)
        ],
        "`predict`, files": lambda: sum(1 for _ in exact.predict(files)),
        "`predict`, files, `fast_decode`": lambda: sum(1 for _ in fast.predict(files)),
        "`predict`, the arrays of a batch": lambda: sum(1 for _ in exact.predict(list(pixels) * (len(files) // BATCH))),
        "reading, decoding, resizing alone": lambda: [
            len(x) for _, x in evaluation_batches(files, extractor.preprocess, BATCH, cpu_count())
        ],
    }
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, work in ways.items():
            started = time.perf_counter()
            work()
            if number:  # the first round warms up
                figures[name].append(len(files) / (time.perf_counter() - started))
    print("| what | images/s | of the engine's rate, median of rounds |\n|---|---|---|")
    for name, values in figures.items():
        share = statistics.median(v / e for v, e in zip(values, figures["engine, ready tensors"], strict=True))
        print(f"| {name} | {statistics.median(values):.1f} | {share:.2f} |")


def likeness(weights: Path, folders: dict[str, Path]) -> None:
    """Print cosines between features of exact and of reduced decoding."""
    from paddlex_feat.data.images.decode import decode_with
    from paddlex_feat.data.images.preprocess import Preprocess
    from paddlex_feat.inference.export.exporter import Exporter
    from paddlex_feat.inference.extractor import FeatureExtractor
    from paddlex_feat.models import recognizer
    from paddlex_feat.models import weights as weight_files
    from paddlex_feat.models.spec import NetworkSpec

    with tempfile.TemporaryDirectory() as temporary:
        state = weight_files.read(weights)
        classes = next(v.shape[1] for k, v in state.items() if k.startswith("head"))
        Exporter(recognizer.build(NetworkSpec(), classes), "PP-ShiTuV2_rec", Preprocess(SIZE)).write(
            state, Path(temporary)
        )
        extract = FeatureExtractor(Path(temporary))
    print("\n| images | decoded at | shorter side | smallest cosine | mean |\n|---|---|---|---|---|")
    for kind, folder in folders.items():
        data = [f.read_bytes() for f in sorted(folder.iterdir())[:FACES]]
        features = []
        for flag in (cv2.IMREAD_COLOR, cv2.IMREAD_REDUCED_COLOR_2, cv2.IMREAD_REDUCED_COLOR_4):
            images = [extract.preprocess.resize(decode_with(d, kind, flag)) for d in data]
            features.append(extract(np.stack([cv2.cvtColor(i, cv2.COLOR_BGR2RGB) for i in images])))
        for factor, reduced in zip((2, 4), features[1:], strict=True):
            cosines = np.einsum("nd,nd->n", features[0], reduced)
            side = HEIGHT // factor
            print(f"| {kind} | 1/{factor} | {side / SIZE:.1f} x | {cosines.min():.5f} | {cosines.mean():.5f} |")


def measure(images: int = 192, rounds: int = 3, weights: str = "") -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as temporary:
        photographs, faces, model = (Path(temporary) / name for name in ("photographs", "faces", "model"))
        for folder in (photographs, faces):
            folder.mkdir()
        make_photographs(photographs, images, WIDTH, HEIGHT)
        make_model(model)
        rates(model, photographs, rounds)
        if weights:
            make_faces(faces)
            likeness(Path(weights), {"photographs": photographs, "faces": faces})


if __name__ == "__main__":
    match sys.argv[1:]:
        case [images, rounds, *weights]:
            measure(int(images), int(rounds), *weights)
        case _:
            measure()
