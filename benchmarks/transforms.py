"""How fast training samples are made on one core, beside the same steps written down plainly.

    python benchmarks/transforms.py [images]

Prints the tables of benchmarks/README.md. Ratios are taken pair by pair in one run; medians are quoted.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.augment.rand_augment import RandAugment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.loading.loader import prefetch_map

PAIRS = 7
EPOCHS = 20  # of both recipes
SIZE, PAD = 224, 10
PREPROCESS = Preprocess(SIZE)
MEAN, STD = (np.array(values, np.float32).reshape(1, 1, 3) for values in (PREPROCESS.mean, PREPROCESS.std))
CLIP = Augment(
    crop="random_resized_crop", rotation_prob=0.3, rotation_interpolation="bicubic", rand_augment=RandAugment(num_ops=2)
)

CACHE_BYTES = 2**30  # the default of Train.cache_mib
RUN, CLIP_RUN = (f"{who}, normalised to float32, a run of {EPOCHS} epochs" for who in ("ours", "CLIP recipe, ours"))

Sample = Callable[[str, np.random.Generator], np.ndarray]


def make_images(folder: Path, height: int, width: int, count: int) -> list[str]:
    """JPEG files of quality 90 with soft shades, edges, texture and noise, all different."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        image = cv2.resize(
            rng.integers(0, 256, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
        )
        for _ in range(12):
            corners = (rng.random((4, 2)) * (width, height)).astype(np.int32)
            cv2.fillPoly(image, [corners], [int(v) for v in rng.integers(0, 256, 3)], cv2.LINE_AA)
        y, x = np.mgrid[:height, :width]
        texture = 12 * np.sin(x / rng.uniform(3, 9)) * np.sin(y / rng.uniform(3, 9))
        noisy = image + (texture + rng.normal(0, 3, (height, width)))[..., None]
        path = folder / f"{i:05d}.jpg"
        cv2.imwrite(str(path), np.clip(noisy, 0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90])
        paths.append(str(path))
    return paths


def plain(path: str, rng: np.random.Generator) -> np.ndarray:
    """The recipe of PP-ShiTuV2_rec one step after the other: float32 [3, S, S]."""
    image = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    if rng.random() < 0.5:
        image = cv2.flip(image, 1)
    image = cv2.copyMakeBorder(image, PAD, PAD, PAD, PAD, cv2.BORDER_CONSTANT)
    top, left = rng.integers(0, 2 * PAD + 2, size=2)
    image = image[top : top + SIZE, left : left + SIZE]
    if rng.random() < 0.5:
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), rng.uniform(-90, 90), 1)
        image = cv2.warpAffine(image, matrix, (width, height), flags=cv2.INTER_LINEAR)
    image = cv2.resize(image, (SIZE, SIZE), interpolation=cv2.INTER_LINEAR)
    normal = (image.astype(np.float32) * np.float32(1 / 255) - MEAN) / STD
    return np.ascontiguousarray(normal.transpose(2, 0, 1))


def ours(augment: Augment) -> Sample:
    """What the loader does for a sample of the first epoch: uint8 [S, S, 3]."""
    return lambda path, rng: augment.read(path, PREPROCESS, rng)


def normalised(augment: Augment, cache: ImageCache | None = None) -> Sample:
    """The same, and the normalisation that the device does otherwise: float32 [3, S, S]."""
    return lambda path, rng: PREPROCESS.normalise(augment.read(path, PREPROCESS, rng, cache)[None])[0]


def decoded(flag: int) -> Sample:
    """Reading and decoding, and nothing else."""

    def sample(path: str, _: np.random.Generator) -> np.ndarray:
        image = cv2.imdecode(np.frombuffer(Path(path).read_bytes(), np.uint8), flag)
        if image is None:
            raise ValueError(path)
        return image

    return sample


def rate(sample: Sample, paths: list[str]) -> float:
    """Samples a second."""
    rng = np.random.default_rng(1)
    started = time.perf_counter()
    for path in paths:
        sample(path, rng)
    return len(paths) / (time.perf_counter() - started)


def run_rate(paths: list[str], augment: Augment) -> float:
    """Samples a second over a run of EPOCHS, whose first fills the cache."""
    sample, rng = normalised(augment, ImageCache(CACHE_BYTES)), np.random.default_rng(1)
    started = time.perf_counter()
    for _ in range(EPOCHS):
        for path in paths:
            sample(path, rng)
    return EPOCHS * len(paths) / (time.perf_counter() - started)


def table(paths: list[str], title: str, asked: str) -> None:
    """Measure all ways in turn, PAIRS times over, and print the medians."""
    ways: dict[str, Sample] = {
        "the steps written plainly, to float32": plain,
        "ours, normalised to float32, nothing kept": normalised(Augment()),
        "ours, 8-bit, as the loader delivers it": ours(Augment()),
        "ours, 8-bit, step by step, full decoding": ours(Augment(fused=False, reduced_decode=False)),
        "CLIP recipe, ours, 8-bit": ours(CLIP),
        "CLIP recipe, ours, 8-bit, full decoding": ours(replace(CLIP, reduced_decode=False)),
        "decoding alone, full": decoded(cv2.IMREAD_COLOR),
        "decoding alone, at 1/4": decoded(cv2.IMREAD_REDUCED_COLOR_4),
    }
    rates: dict[str, list[float]] = {name: [] for name in (*ways, RUN, CLIP_RUN)}
    for sample in ways.values():
        rate(sample, paths[:5])
    for _ in range(PAIRS):
        for name, sample in ways.items():
            rates[name].append(rate(sample, paths))
        rates[RUN].append(run_rate(paths, Augment()))
        rates[CLIP_RUN].append(run_rate(paths, CLIP))
    mean = statistics.mean(Path(p).stat().st_size for p in paths) / 1000
    print(f"\n{title}, {mean:.0f} KB each\n\n| what | images/s | beside the plain steps |\n|---|---|---|")
    base = next(iter(rates.values()))
    for name, values in rates.items():
        ratio = statistics.median(v / b for v, b in zip(values, base, strict=True))
        note = f" (asked: at least {asked})" if name == "ours, normalised to float32, nothing kept" else ""
        print(f"| {name} | {statistics.median(values):.0f} | {ratio:.2f}{note} |", flush=True)


def sample_of(job: tuple[str, int]) -> np.ndarray:
    """One sample of the CLIP recipe, whose Pillow operations are the hardest on threads."""
    return CLIP.read(job[0], PREPROCESS, np.random.default_rng(job[1]))


def loaders(paths: list[str]) -> None:
    """Table of two threads against two processes that send their samples through pipes."""
    jobs = [(path, seed) for seed in range(4) for path in paths]
    groups = [jobs[i : i + 32] for i in range(0, len(jobs), 32)]
    rates: dict[str, list[float]] = {"2 threads": [], "2 processes": []}
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(sample_of, jobs[:8]))
        for _ in range(PAIRS):
            started = time.perf_counter()
            for _, images in prefetch_map(groups, sample_of, 2):
                np.stack(images)
            rates["2 threads"].append(len(jobs) / (time.perf_counter() - started))
            started = time.perf_counter()
            for group in groups:
                np.stack(list(pool.map(sample_of, group, chunksize=4)))
            rates["2 processes"].append(len(jobs) / (time.perf_counter() - started))
    print("\nCLIP recipe, batches of 32, both cores\n\n| loader | images/s |\n|---|---|")
    for name, values in rates.items():
        print(f"| {name} | {statistics.median(values):.0f} |", flush=True)


def main(count: int) -> None:
    """Measure large and small files."""
    cv2.setNumThreads(1)
    print(f"One core, OpenCV {cv2.__version__}, {SIZE} px, {PAIRS} rounds")
    with tempfile.TemporaryDirectory() as temporary:
        for height, width, files, asked in ((1024, 1365, count, "5"), (160, 160, 4 * count, "1.3")):
            folder = Path(temporary) / f"{height}"
            folder.mkdir()
            paths = make_images(folder, height, width, files)
            table(paths, f"{files} JPEG files of {width} x {height}", asked)
            loaders(paths)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
