"""Maps of the features fitted within a training (Train.adapt): before its first step, and after its last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from paddlex_feat.config.schema import Config
from paddlex_feat.data.lists.image_list import ImageList, same_images
from paddlex_feat.evaluation.embed import Extractor, embed
from paddlex_feat.evaluation.ranking.hits import first_hits
from paddlex_feat.inference.extractor import unit_rows
from paddlex_feat.modes.train_data import Data
from paddlex_feat.modes.train_features import TrainingFeatures, Weights
from paddlex_feat.modes.worker import Worker
from paddlex_feat.training.adaptation.choose import Choice, best_measured, choose_among
from paddlex_feat.training.adaptation.fold import fold, takes_map, with_exponent
from paddlex_feat.training.adaptation.maps import AffineMap
from paddlex_feat.training.cached_features import CachedFeatures
from paddlex_feat.training.candidate import Candidate
from paddlex_feat.training.trainer import Trainer

log = logging.getLogger(__name__)
Measure = Callable[[AffineMap | None], np.ndarray]


class FeatureMaps:
    """Fits maps of the features that a network gives for the training images, and puts them into its weights.

    Args:
        config: the run's configuration.
        trainer: of the run.
        data: the data of the run.
        worker: this process. All ranks call all methods and get the same result.
        features: of the training images.
    """

    def __init__(self, config: Config, trainer: Trainer, data: Data, worker: Worker, features: TrainingFeatures):
        self._config, self._trainer, self._data, self._worker = config, trainer, data, worker
        self._features = features
        self._start: dict[str, np.ndarray] | None = None

    def at_start(
        self, before_neck: Sequence[CachedFeatures], exponents: Sequence[float], weights: Weights
    ) -> tuple[int, dict[str, np.ndarray]] | None:
        """Return what changes with the map and the pooling that cross-validation over training classes prefers.

        Args:
            before_neck: features of the training images by each exponent, with those of mirror images if there are any.
            exponents: of the pooling, its own first; none: it has none.
            weights: of the network that gives them, float32 by name.

        Returns the number of the exponent and the tensors; None if nothing changes.
        """
        cached = [self._features.after_neck(features, weights) for features in before_neck]
        views = [(features.plain, features.mirrored) for features in cached]
        number, choice = choose_among(views, cached[0].labels, self._config.Train.seed)
        number = int(self._worker.group.broadcast(np.array([number], np.int32))[0])
        log.info("Train.adapt=start: %s %g. %s", choice.candidate.kind, choice.candidate.strength, choice.reason)
        mapped = self._folded(weights, choice)
        if number:
            log.info("Train.adapt=start: the pooling starts with the exponent %g.", exponents[number])
            mapped = with_exponent(mapped or dict(weights), exponents[number])
        if mapped is None:
            return None
        self._start = {name: value for name, value in mapped.items() if takes_map(name)}
        return number, self._start

    def adapted_start(self, weights: Weights) -> Weights:
        """Return the start weights as training has started from them, with a map if one was applied."""
        progress = self._trainer.state.progress
        if "start" not in self._config.Train.adapt or (progress.start and not progress.adapted):
            return weights
        if self._start is None:  # the run was resumed
            exponents = self._features.exponents_of(weights)
            self.at_start(self._features.before_neck_by(exponents, weights), exponents, weights)
        return {**weights, **(self._start or {})}

    def at_end(self, weights: Weights) -> tuple[str, dict[str, np.ndarray]] | None:
        """Return the weights with the map that the evaluation prefers, and the map's name, if any.

        Classes that a network was trained on say little about maps of its features, so the maps are fitted to them and
        measured on what best_model is chosen on.
        """
        cached = self._features.after_neck(self._features.before_neck(weights), weights)
        with self._trainer.candidate_by(self._trainer.exporter, weights) as network:
            measure = self._measure_on_queries(network)
        choice = best_measured(cached.plain, cached.mirrored, cached.labels, measure)
        log.info("Train.adapt=end: %s %g. %s", choice.candidate.kind, choice.candidate.strength, choice.reason)
        mapped = self._folded(weights, choice)
        return None if mapped is None else (f"{choice.candidate.kind} {choice.candidate.strength:g}", mapped)

    def _folded(self, weights: Weights, choice: Choice) -> dict[str, np.ndarray] | None:
        """Weights with the map of rank 0's choice, equal on all ranks."""
        group, mapped = self._worker.group, dict(weights)
        if choice.map is not None and choice.variance is not None:
            neck = getattr(self._trainer.exporter.network.neck, "feat_bn", None)
            kept = 1 - self._config.Model.dropout
            mapped = fold(mapped, choice.map, choice.variance, kept, float(getattr(neck, "_epsilon", 0.0)))
        if not group.broadcast(np.array([choice.map is not None], np.int32))[0]:
            return None
        return {name: group.broadcast(value) if takes_map(name) else value for name, value in mapped.items()}

    def _measure_on_queries(self, network: Candidate) -> Measure:
        """A map of the features -> whether the nearest gallery image of each query is of its class, float64 [Q]."""
        lists, own = self._data.evaluated()
        views = _Views(self._features.extractor(network, self._trainer.exporter.network), self._config.Evaluate.mirror)
        gallery = self._embed(views, lists["gallery"], network)
        same = same_images(lists["query"], lists["gallery"])
        query = gallery if same else self._embed(views, lists["query"], network)
        labels = [np.asarray(lists[name].labels) for name in ("query", "gallery")]

        def measure(mapped: AffineMap | None) -> np.ndarray:
            gallery_rows = views.mapped(gallery, mapped)
            query_rows = gallery_rows if same else views.mapped(query, mapped)
            return first_hits(query_rows, labels[0], gallery_rows, labels[1], own)

        return measure

    def _embed(self, views: _Views, images: ImageList, network: Candidate) -> np.ndarray:
        batch, worker = self._config.Evaluate.batch_size, self._worker
        return embed(views, images.files(), batch, worker.decoding_threads, worker.group, after_batch=network.look)


class _Views:
    """Features of images and, if `mirror`, of their mirror images side by side, float32 [N, D] or [N, 2 D]."""

    def __init__(self, extract: Extractor, mirror: bool):
        self._extract, self._views = extract, 1 + mirror
        self.preprocess = extract.preprocess

    def __call__(self, images: np.ndarray) -> np.ndarray:
        parts = [self._extract(np.ascontiguousarray(images[:, :, ::-1] if i else images)) for i in range(self._views)]
        return np.concatenate(parts, axis=1)

    def mapped(self, features: np.ndarray, chosen: AffineMap | None) -> np.ndarray:
        """Unit features after a map, those of both views averaged as in evaluation."""
        parts = np.split(features, self._views, axis=1)
        units = [unit_rows(part if chosen is None else chosen(part).astype(np.float32)) for part in parts]
        return unit_rows(np.mean(units, axis=0))
