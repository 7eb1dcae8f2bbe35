"""The baseline that needs no network: retrieval by the raw pixels of the same images."""

from __future__ import annotations

from typing import Any

import numpy as np

from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.evaluation.embed import Extractor
from paddlex_feat.evaluation.metrics import RetrievalMetrics
from paddlex_feat.runtime.distributed import ProcessGroup

SIDE = 16
NAME = f"raw pixels, {SIDE} x {SIDE}"
DIM = SIDE * SIDE * 3
MAX_PAIRS = 200_000_000  # queries x gallery images; ranking them takes seconds
MEMORY_SHARE = 4  # the pixels take at most this part of an evaluation's memory


def affordable(queries: int, gallery: int, memory: int) -> bool:
    """Whether the baseline of lists of these lengths costs little beside their embedding; `memory` in bytes."""
    return queries * gallery <= MAX_PAIRS and MEMORY_SHARE * 4 * DIM * (queries + gallery) <= memory


class PixelRecorder:
    """An extractor that keeps the pixels of the images it is given at SIDE x SIDE: they are decoded once for both.

    Args:
        extract: computes the features.
    """

    def __init__(self, extract: Extractor):
        self._extract = extract
        self._batches: list[np.ndarray] = []

    @property
    def preprocess(self) -> Preprocess:
        """Pre-processing of the images, as for `extract`."""
        return self._extract.preprocess

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """uint8 [N, S, S, 3], RGB, resized -> float32 [N, D], the features."""
        small = np.empty((len(images), SIDE, SIDE, 3), np.uint8)
        for image, target in zip(images, small, strict=True):
            cv2.resize(image, (SIDE, SIDE), dst=target, interpolation=cv2.INTER_AREA)
        self._batches.append(small.reshape(len(images), DIM))
        return self._extract(images)

    def features(self, count: int, batch_size: int, group: ProcessGroup) -> np.ndarray:
        """Features of all images in the order of their list, float32 [count, DIM], on every rank.

        A feature is the pixels less their mean, at unit length: the cosine of two is the correlation of their pixels.
        An image of one colour has a row of zeros. The arguments are those of `embed`, which has called.
        """
        own = np.concatenate([np.empty((0, DIM), np.uint8), *self._batches])
        ranks = np.arange(count) // batch_size % group.size  # as `evaluation_batches` deals them
        rows = np.empty((count, DIM), np.float32)
        for rank, part in enumerate(group.all_gather_rows(own)):
            rows[ranks == rank] = part
        rows -= rows.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
        norms = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
        rows /= np.where(norms > 0, norms, 1).astype(np.float32)[:, None]
        return rows


def as_result(baseline: RetrievalMetrics | None) -> dict[str, Any] | None:
    """The baseline for evaluate_result.json: its name, recall1, recall5, mAP; None if it was not computed."""
    return None if baseline is None else {"name": NAME, **baseline.main()}


def figures(main: dict[str, float]) -> str:
    """Metrics by name for the log."""
    return ", ".join(f"{name}: {value:.5f}" for name, value in main.items())


def better_in(baseline: RetrievalMetrics | None, metrics: RetrievalMetrics) -> list[str]:
    """Where raw pixels are better than the network: "recall1 0.733 against 0.710" and the like."""
    if baseline is None:
        return []
    own = metrics.main()
    return [
        f"{name} {value:.3f} against {own[name]:.3f}" for name, value in baseline.main().items() if value > own[name]
    ]
