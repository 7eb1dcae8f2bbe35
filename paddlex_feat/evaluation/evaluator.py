"""Evaluate a feature extractor on a data set."""

from __future__ import annotations

import dataclasses
import logging
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlex_feat.data.lists.image_list import ImageList, same_images
from paddlex_feat.data.shard import Shard
from paddlex_feat.errors import OTHER_OUTPUT, OTHER_TEMPORARY, as_output_error
from paddlex_feat.evaluation.baseline import PixelRecorder, affordable
from paddlex_feat.evaluation.embed import Extractor, embed
from paddlex_feat.evaluation.feature_shards import own_images
from paddlex_feat.evaluation.metrics import RetrievalMetrics, metrics_of
from paddlex_feat.evaluation.ranking.ranks import Ranking, rank_gallery
from paddlex_feat.runtime.distributed import ProcessGroup

log = logging.getLogger(__name__)
MAX_COMPARED = 1000  # features of each list that `Evaluation.collapsed` compares
DECIMALS = 6  # unit features that agree in these count as the same
MAPPED_ROWS = 8192  # of features that are in float64 at once
MIN_RANKING_BYTES = 2**26  # memory of the ranking, however much the features take


@dataclass(frozen=True)
class Evaluation:
    """Metrics with the ranking and the features they come from.

    Attributes:
        metrics: means over the queries.
        ranking: ranks and nearest images of each query.
        query: float32 [Q, D], unit rows.
        gallery: float32 [G, D], unit rows; with `query` part of one array, in memory or in a file.
        self_pairs: int64 [P, 2], pairs (query, gallery) of the same file that were left out; None: not asked for.
        baseline: metrics of raw pixels on the same lists (see `baseline.py`); None: not computed.
    """

    metrics: RetrievalMetrics
    ranking: Ranking
    query: np.ndarray
    gallery: np.ndarray
    self_pairs: np.ndarray | None = None
    baseline: RetrievalMetrics | None = None

    def main_metrics(self) -> dict[str, float]:
        """recall1, recall5, mAP."""
        return self.metrics.main()

    @property
    def collapsed(self) -> bool:
        """Whether MAX_COMPARED images of each list have at most a tenth as many distinct features."""
        rows = np.concatenate([part[:MAX_COMPARED] for part in (self.gallery, self.query)])
        distinct = len(np.unique(rows.round(DECIMALS), axis=0))
        return len(rows) > 1 and distinct <= max(1, len(rows) // 10)


def files_of(lists: dict[str, ImageList]) -> list[str]:
    """The images of a gallery and its queries whose features an evaluation needs, in their order."""
    same = same_images(lists["query"], lists["gallery"])
    return [*lists["gallery"].files(), *([] if same else lists["query"].files())]


class Evaluator:
    """Evaluates feature extractors on one data set.

    Args:
        lists: "gallery" and "query"; if both name the same images in the same order, these are embedded once.
        batch_size: images of a batch.
        workers: threads that decode images.
        group: processes that share the work; all of them must call, and all get the result.
        self_pairs: int64 [P, 2], pairs (query, gallery) that are left out.
        recall_ks: the k of recall@k, besides 1 and 5.
        memory: bytes for features and similarities together, in this process.
        threads: that rank; 0: as many as `workers`.
        scratch: folder for features that do not fit in half of `memory`.
    """

    def __init__(
        self,
        lists: dict[str, ImageList],
        batch_size: int,
        workers: int,
        group: ProcessGroup | None = None,
        *,
        self_pairs: np.ndarray | None = None,
        recall_ks: Sequence[int] = (),
        memory: int = 2**31,
        threads: int = 0,
        scratch: Path | None = None,
    ):
        self._query, self._gallery = lists["query"], lists["gallery"]
        self._same_images = same_images(self._query, self._gallery)
        self._batch_size = batch_size
        self._workers = workers
        self._group = group or ProcessGroup()
        self._self_pairs = self_pairs
        self._ks = sorted({1, 5, *recall_ks})
        self._memory = memory
        self._threads = threads or workers
        self._scratch = scratch

    def __call__(
        self, extract: Extractor, after_batch: Callable[[], None] | None = None, baseline: bool = False
    ) -> Evaluation:
        """Embed both lists and rank the gallery for each query.

        Args:
            extract: pixels to features.
            after_batch: called between batches (see `embed`).
            baseline: compute the metrics of raw pixels too, unless the lists are so long that this would be slow.

        Raises:
            ImageError: If an image cannot be decoded.
            EvaluationError: If features are not finite, or no query has a match.
            OutputError: If the features do not fit in `scratch`.
        """
        pixels = PixelRecorder(extract) if baseline and self._baseline_is_affordable() else None
        evaluation = self.measure(self.embed(pixels or extract, after_batch))
        if pixels is None:
            return evaluation
        raw = self._measure_pixels(pixels, self._left(evaluation.gallery))
        return dataclasses.replace(evaluation, baseline=raw)

    def embed(self, extract: Extractor, after_batch: Callable[[], None] | None = None) -> np.ndarray:
        """Features of the gallery, then of the queries unless these are the same images, float32 [N, D].

        Arguments and errors are those of a call, of which this is the first half and `measure` the second.
        """
        size, workers, group = self._batch_size, self._workers, self._group
        return embed(extract, self._files, size, workers, group, self.allocate, self._name, after_batch)

    def embed_shard(self, extract: Extractor, shard: Shard) -> np.ndarray:
        """The features that `embed` gives a shard's images, see `feature_shards.own_images`: float32 [n, D]."""
        files, size = self._files, self._batch_size
        own = own_images(len(files), size, shard).tolist()
        part = [files[i] for i in own]
        return embed(extract, part, size, self._workers, self._group, self.allocate, lambda i: self._name(own[i]))

    def mapped(self, features: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        """The features of `embed` after a function of their rows, some at a time, as float32 [N, D']."""
        mapped: np.ndarray | None = None
        for first in range(0, len(features), MAPPED_ROWS):
            rows = function(features[first : first + MAPPED_ROWS])
            if mapped is None:
                mapped = self.allocate((len(features), rows.shape[1]))
            mapped[first : first + len(rows)] = rows
        return features if mapped is None else mapped

    def measure(self, features: np.ndarray) -> Evaluation:
        """Rank the gallery for each query by unit features as `embed` gives them; without a baseline."""
        gallery = features[: len(self._gallery)]
        query = gallery if self._same_images else features[len(self._gallery) :]
        ranking = self._rank(query, gallery, self._left(features))
        return Evaluation(metrics_of(ranking, self._ks), ranking, query, gallery, self._self_pairs)

    @property
    def _files(self) -> list[str]:
        return files_of({"gallery": self._gallery, "query": self._query})

    def _left(self, features: np.ndarray) -> int:
        """Bytes for similarities beside the features, which may be in a file."""
        whole = features if features.base is None or isinstance(features, np.memmap) else features.base
        held = 0 if isinstance(whole, np.memmap) else whole.nbytes
        return max(self._memory - held, MIN_RANKING_BYTES)

    def _baseline_is_affordable(self) -> bool:
        fits = affordable(len(self._query), len(self._gallery), self._memory)
        if not fits:
            log.info("The lists are too long for the figures of raw pixels; they are left out.")
        return fits

    def _measure_pixels(self, pixels: PixelRecorder, memory: int) -> RetrievalMetrics:
        """Metrics of raw pixels, by the same exact ranking."""
        count = len(self._gallery)
        rows = pixels.features(count + (0 if self._same_images else len(self._query)), self._batch_size, self._group)
        query = rows if self._same_images else rows[count:]
        ranking = self._rank(query, rows[:count], max(memory - rows.nbytes, MIN_RANKING_BYTES))
        return metrics_of(ranking, self._ks)

    def _name(self, index: int) -> str:
        records = self._gallery
        if index >= len(records):
            records, index = self._query, index - len(records)
        return f"{records.where(index)}: {records.files()[index]}"

    def allocate(self, shape: tuple[int, int]) -> np.ndarray:
        """Allocate features in memory if half of the bound suffices, else in an unnamed temporary file."""
        size = 4 * shape[0] * shape[1]
        if 2 * size <= self._memory:
            return np.empty(shape, np.float32)
        folder = self._scratch or Path(tempfile.gettempdir())
        log.info("%d MiB of features are kept in a temporary file in %s.", size >> 20, folder)
        with as_output_error(folder, OTHER_OUTPUT if self._scratch else OTHER_TEMPORARY):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as stream:  # unnamed: nothing is left after a kill
                if hasattr(os, "posix_fallocate"):  # a disk that fills up later would kill the process
                    os.posix_fallocate(stream.fileno(), 0, size)
                stream.truncate(size)
                return np.memmap(stream, np.float32, "r+", shape=shape)

    def _rank(self, query: np.ndarray, gallery: np.ndarray, memory: int) -> Ranking:
        """Rank the queries; of several processes each takes every size-th query, and all get the whole result."""
        first, size, self_pairs = self._group.rank, self._group.size, self._self_pairs
        if self_pairs is not None and size > 1:
            self_pairs = self_pairs[self_pairs[:, 0] % size == first] // [size, 1]
        labels = np.asarray(self._query.labels, np.int64)[first::size]
        gallery_labels = np.asarray(self._gallery.labels, np.int64)
        part = rank_gallery(
            query[first::size], labels, gallery, gallery_labels, self_pairs, memory_bytes=memory, threads=self._threads
        )
        if size == 1:
            return part
        columns = {}
        for name in (field.name for field in dataclasses.fields(part)):
            parts = self._group.all_gather_rows(getattr(part, name))
            whole = np.empty((len(query), *parts[0].shape[1:]), parts[0].dtype)
            for other, rows in enumerate(parts):
                whole[other::size] = rows
            columns[name] = whole
        return Ranking(**columns)
