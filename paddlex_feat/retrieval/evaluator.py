"""From an inference directory and a data set to metrics."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlex_feat.dataset.records import ImageList
from paddlex_feat.group import Group
from paddlex_feat.inference.engine import FeatureExtractor
from paddlex_feat.retrieval.embed import embed
from paddlex_feat.retrieval.metrics import RetrievalMetrics, metrics_of
from paddlex_feat.retrieval.ranking import Ranking, rank


@dataclass(frozen=True)
class Evaluation:
    """Metrics with the ranking and the features they come from: float32 [Q, D] and [G, D], unit rows.

    `own`, int64 [P, 2], are the (query, gallery) pairs of the same file, where these were left out.
    """

    metrics: RetrievalMetrics
    ranking: Ranking
    query: np.ndarray
    gallery: np.ndarray
    own: np.ndarray | None = None

    def headline(self) -> dict[str, float]:
        """recall1, recall5, mAP."""
        return {
            "recall1": self.metrics.recall[1],
            "recall5": self.metrics.recall[5],
            "mAP": self.metrics.mean_ap,
        }


class Evaluator:
    """Evaluates inference directories on one data set.

    Args:
        lists: "gallery" and "query".
        device: "cpu" or "gpu:N".
        threads: CPU threads of the engine, 0 = all; workers: decoding threads.
        group: processes that share the embedding; all of them must call, and all get the result.
    """

    def __init__(
        self,
        lists: dict[str, ImageList],
        batch_size: int,
        device: str,
        threads: int,
        workers: int,
        group: Group | None = None,
    ):
        self._lists = lists
        self._batch_size = batch_size
        self._device = device
        self._threads = threads
        self._workers = workers
        self._group = group or Group()

    def __call__(self, folder: Path) -> Evaluation:
        """Embed both lists with the model in `folder` and compare."""
        extract = FeatureExtractor(folder, self._device, self._threads)
        features = {
            name: embed(
                extract,
                self._lists[name].files(),
                extract.info.preprocess,
                self._batch_size,
                self._workers,
                f"embedding {name}",
                self._group,
            )
            for name in ("gallery", "query")
        }
        ranking = rank(
            features["query"], self._lists["query"].labels, features["gallery"], self._lists["gallery"].labels
        )
        return Evaluation(metrics_of(ranking), ranking, features["query"], features["gallery"])
