"""Maps of the features fitted within a training (Train.adapt): before its first step, and after its last."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import numpy as np

from paddlex_feat.config.schema import Config
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation.embed import Extractor, embed
from paddlex_feat.evaluation.ranking.ranks import rank_gallery
from paddlex_feat.inference.extractor import FeatureExtractor, unit_rows
from paddlex_feat.inference.network import NetworkExtractor
from paddlex_feat.modes.build import preprocess_of
from paddlex_feat.modes.train_data import Data
from paddlex_feat.modes.worker import Worker
from paddlex_feat.training.adaptation.choose import Choice, best_measured, choose
from paddlex_feat.training.adaptation.fold import fold, takes_map
from paddlex_feat.training.adaptation.maps import AffineMap
from paddlex_feat.training.cached_features import CachedFeatures, cache_features
from paddlex_feat.training.candidate import Candidate
from paddlex_feat.training.trainer import Trainer

log = logging.getLogger(__name__)
Weights = Mapping[str, np.ndarray]
Measure = Callable[[AffineMap | None], np.ndarray]


class FeatureMaps:
    """Fits maps of the features that a network gives for the training images, and puts them into its weights.

    Args:
        config: the run's configuration.
        trainer: of the run, whose exporter writes the network without its head.
        data: the data of the run.
        worker: this process. All ranks call all methods; images are shared among them, and all get the same result.
    """

    def __init__(self, config: Config, trainer: Trainer, data: Data, worker: Worker):
        self._config, self._trainer, self._data, self._worker = config, trainer, data, worker
        self._start: dict[str, np.ndarray] | None = None

    def at_start(self, network: Candidate) -> dict[str, np.ndarray] | None:
        """Return the weights of a network with the map that cross-validation over training classes prefers, if any."""
        cached = self.features(network)
        plain, mirrored = cached.features
        choice = choose(plain, mirrored, cached.labels, self._config.Train.seed)
        log.info("Train.adapt=start: %s %g. %s", choice.candidate.kind, choice.candidate.strength, choice.reason)
        self._start = self._folded(network, choice)
        return self._start

    def adapted_start(self, weights: Weights) -> Weights:
        """Return the start weights as training has started from them, with a map if one was applied."""
        progress = self._trainer.state.progress
        if "start" not in self._config.Train.adapt or (progress.start and not progress.adapted):
            return weights
        if self._start is None:  # the run was resumed
            with self._trainer.candidate_by(self._trainer.exporter, weights) as network:
                self.at_start(network)
        return self._start or weights

    def at_end(self, network: Candidate) -> tuple[str, dict[str, np.ndarray]] | None:
        """Return the weights of a network with the map that the evaluation prefers and the map's name, if any.

        Classes that a network was trained on say little about maps of its features, so the maps are fitted to them and
        measured on what best_model is chosen on.
        """
        cached = self.features(network)
        plain, mirrored = cached.features
        measure = self._measure_on_queries(network)
        choice = best_measured(plain, mirrored, cached.labels, measure)
        log.info("Train.adapt=end: %s %g. %s", choice.candidate.kind, choice.candidate.strength, choice.reason)
        weights = self._folded(network, choice)
        return None if weights is None else (f"{choice.candidate.kind} {choice.candidate.strength:g}", weights)

    def features(self, network: Candidate) -> CachedFeatures:
        """Features of the training images and their mirror images, float32 [2, N, D], before the L2 normalisation."""
        data, worker = self._data, self._worker
        return cache_features(
            self._extractor(network),
            data.lists["train"].files(),
            data.labels,
            mirrored=True,
            batch_size=self._config.Evaluate.batch_size,
            workers=worker.decoding_threads,
            group=worker.group,
            bad=data.bad,
            look=network.look,
        )

    def _extractor(self, network: Candidate) -> Extractor:
        if self._worker.device == "cpu":
            return FeatureExtractor(network.inference(), self._worker.device, self._worker.threads, raw=True)
        extract = NetworkExtractor(self._trainer.exporter.network, preprocess_of(self._config), raw=True)
        extract.load(network.weights)
        return extract

    def _folded(self, network: Candidate, choice: Choice) -> dict[str, np.ndarray] | None:
        """Weights with the map of rank 0's choice, equal on all ranks."""
        group, weights = self._worker.group, {name: tensor.numpy() for name, tensor in network.weights.items()}
        if choice.map is not None and choice.variance is not None:
            neck = getattr(self._trainer.exporter.network.neck, "feat_bn", None)
            kept = 1 - self._config.Model.dropout
            weights = fold(weights, choice.map, choice.variance, kept, float(getattr(neck, "_epsilon", 0.0)))
        if not group.broadcast(np.array([choice.map is not None], np.int32))[0]:
            return None
        return {name: group.broadcast(value) if takes_map(name) else value for name, value in weights.items()}

    def _measure_on_queries(self, network: Candidate) -> Measure:
        """A map of the features -> whether the nearest gallery image of each query is of its class, float64 [Q]."""
        lists, own = self._data.evaluated()
        views = _Views(self._extractor(network), self._config.Evaluate.mirror)
        gallery = self._embed(views, lists["gallery"], network)
        query = gallery if lists["query"] is lists["gallery"] else self._embed(views, lists["query"], network)
        labels = [np.asarray(lists[name].labels) for name in ("query", "gallery")]

        def measure(mapped: AffineMap | None) -> np.ndarray:
            found = rank_gallery(views.mapped(query, mapped), labels[0], views.mapped(gallery, mapped), labels[1], own)
            hits: np.ndarray = found.first_match[found.first_match > 0] == 1
            return hits.astype(np.float64)

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
