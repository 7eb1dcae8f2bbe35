"""Speed of ranking, compared with two sorts of the whole gallery and with the bare matrix product.

    python benchmarks/ranking.py [small] [large]

Prints the tables of benchmarks/README.md. Ratios are taken pair by pair in one run; medians are quoted.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.evaluation.ranking.ranks import Ranking, rank_gallery
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.runtime.paddle_import import prepare_paddle

DIM, ROUNDS, LARGE_ROUNDS = 512, 3, 2
SMALL, LARGE = (2_000, 50_000, 1_000), (10_000, 1_000_000, 50_000)  # queries, gallery, classes
NOISE = {"of a trained network": 2.5, "at chance": 100.0}  # added to the centre of a class: recall@1 0.95, and 0.001
Labelled = tuple[np.ndarray, np.ndarray]


def features(count: int, centres: np.ndarray, noise: float, seed: int) -> Labelled:
    """Unit rows around the centres of random classes, made in pieces; labels."""
    rng = np.random.default_rng(seed)
    labels, rows = rng.integers(0, len(centres), count), np.empty((count, DIM), np.float32)
    for start in range(0, count, 20_000):
        part = centres[labels[start : start + 20_000]]
        part = part + np.float32(noise) * rng.standard_normal(part.shape, np.float32)
        rows[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    return rows, labels


def make(queries: int, gallery: int, classes: int, noise: float) -> tuple[Labelled, Labelled]:
    """Query and gallery."""
    centres = np.random.default_rng(0).standard_normal((classes, DIM), np.float32)
    return features(queries, centres, noise, 1), features(gallery, centres, noise, 2)


def two_sorts(query: Labelled, gallery: Labelled, argsort: Callable[[np.ndarray], np.ndarray]) -> tuple[float, float]:
    """recall@1 and mAP by blocks of 64 queries, the gallery sorted once for each of the two."""
    recall, mean_ap = 0.0, 0.0
    for start in range(0, len(query[0]), 64):
        similarity = query[0][start : start + 64] @ gallery[0].T
        labels = query[1][start : start + 64, None]
        match = gallery[1][argsort(similarity)] == labels
        recall += match[match.any(axis=1), 0].sum()
        match = gallery[1][argsort(similarity)] == labels
        match = match[match.any(axis=1)]
        precision = np.cumsum(match, axis=1, dtype=np.float32) / np.arange(1, match.shape[1] + 1, dtype=np.float32)
        mean_ap += float(((precision * match).sum(axis=1) / match.sum(axis=1)).sum())
    return recall / len(query[0]), mean_ap / len(query[0])


def product(query: np.ndarray, gallery: np.ndarray) -> None:
    """The same matrix product in large pieces, on all cores, without counting."""
    out = np.empty((2048, 32768), np.float32)
    for q in (query[i : i + 2048] for i in range(0, len(query), 2048)):
        for g in (gallery[i : i + 32768] for i in range(0, len(gallery), 32768)):
            np.matmul(q, g.T, out=out[: len(q), : len(g)])


def seconds(work: Callable[..., object], *arguments: Any) -> float:
    """Duration of one call."""
    start = time.perf_counter()
    work(*arguments)
    return time.perf_counter() - start


def ours(query: Labelled, gallery: Labelled, nearest: int = 0) -> Ranking:
    """Rank for recall@k, mAP, mAP@R and MRR, with the `nearest` images of each query that mode evaluate shows."""
    return rank_gallery(*query, *gallery, nearest=nearest, threads=cpu_count())


def small() -> None:
    """Table of 2,000 x 50,000."""
    prepare_paddle()
    import paddle

    def of_paddle(similarity: np.ndarray) -> np.ndarray:
        order: np.ndarray = paddle.argsort(paddle.to_tensor(similarity), axis=1, descending=True).numpy()
        return order

    sorts: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "two argsorts of NumPy, unstable": lambda s: np.argsort(-s, axis=1),
        "two argsorts of NumPy, stable": lambda s: np.argsort(-s, axis=1, kind="stable"),
        "two argsorts of Paddle": of_paddle,
    }
    for kind, noise in NOISE.items():
        query, gallery = make(*SMALL, noise)
        times: dict[str, list[float]] = {
            name: [] for name in ("matrix product", "ours", "ours, with the five nearest", *sorts)
        }
        for _ in range(ROUNDS):
            times["matrix product"].append(seconds(product, query[0], gallery[0]))
            times["ours"].append(seconds(ours, query, gallery))
            times["ours, with the five nearest"].append(seconds(ours, query, gallery, 5))
            for name, argsort in sorts.items():
                times[name].append(seconds(two_sorts, query, gallery, argsort))
        ranking = ours(query, gallery)
        theirs = two_sorts(query, gallery, sorts["two argsorts of NumPy, stable"])
        own = (float(np.mean(ranking.first_match == 1)), float(ranking.average_precision.mean()))
        print(
            f"\nFeatures {kind}: recall@1 {own[0]:.4f}, mAP {own[1]:.6f} (two sorts: {theirs[0]:.4f}, {theirs[1]:.6f})"
        )
        print("\n| what | seconds | ratio to ours |\n|---|---|---|")
        for name, values in times.items():
            ratio = statistics.median(t / o for t, o in zip(values, times["ours"], strict=True))
            print(f"| {name} | {statistics.median(values):.2f} | {ratio:.2f} |", flush=True)


def large() -> None:
    """Table of 10,000 x 1,000,000."""
    query, gallery = make(*LARGE, NOISE["of a trained network"])
    features = resident()
    pairs, most = [], 0
    for _ in range(LARGE_ROUNDS):
        whole = seconds(ours, query, gallery, 5)
        most = most or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        pairs.append((seconds(product, query[0], gallery[0]), whole))
    share = statistics.median(bare / whole for bare, whole in pairs)
    print(f"\n{LARGE[0]:,} x {LARGE[1]:,} x {DIM}, {LARGE_ROUNDS} pairs\n\n| what | measured | asked |\n|---|---|---|")
    print(f"| bare matrix product | {statistics.median(p for p, _ in pairs):.0f} s | |")
    print(f"| ranks, metrics and the five nearest | {statistics.median(w for _, w in pairs):.0f} s | |")
    print(f"| rate beside the bare product | {share:.2f} | at least 0.5 |")
    print(f"| memory beyond the features | {(most - features) / 2**10:.0f} MiB | at most 2048 MiB |", flush=True)


def resident() -> int:
    """KiB of memory that the process holds now."""
    with Path("/proc/self/status").open() as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmRSS"))


if __name__ == "__main__":
    for name in sys.argv[1:] or ("small", "large"):
        {"small": small, "large": large}[name]()
