"""What a new run does before its first step: a map of the features, class vectors at class means, the linear probe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import paddle
from paddle import nn

from paddlex_feat.config.schema import Config
from paddlex_feat.data import samplers
from paddlex_feat.evaluation.embed import Extractor
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.network import NetworkExtractor
from paddlex_feat.models import recognizer
from paddlex_feat.modes.build import preprocess_of
from paddlex_feat.modes.parts import network_spec
from paddlex_feat.modes.train_build import make_optimizer
from paddlex_feat.modes.train_data import Data
from paddlex_feat.modes.train_map import FeatureMaps
from paddlex_feat.modes.worker import Worker
from paddlex_feat.training.adaptation.fold import takes_map
from paddlex_feat.training.cached_features import CachedFeatures, cache_features
from paddlex_feat.training.candidate import Candidate
from paddlex_feat.training.class_means import class_means, start_at_means
from paddlex_feat.training.probe import Probe, ProbePlan
from paddlex_feat.training.trainer import Trainer

log = logging.getLogger(__name__)


class WarmStart:
    """Callable: changes a new run before its first step, as Train.adapt, method and init_head ask.

    All of it follows from the start weights, the images and the seed. A run that ends before its first step does it
    again when it is resumed; later the checkpoints hold the result.
    """

    def __init__(self, config: Config, trainer: Trainer, data: Data, worker: Worker, maps: FeatureMaps):
        self._config, self._trainer, self._data, self._worker = config, trainer, data, worker
        self._state = state = trainer.state
        self._maps = maps
        self._adapts = "start" in config.Train.adapt
        self._probes = config.Train.method != "full"
        self._probe = Probe(state.model, state.criterion) if self._probes else None
        self._warms = self._probes or config.Train.init_head != "random"

    def __call__(self) -> None:
        """Raises Interrupted on all ranks alike; network and losses are then as they were before."""
        if not (self._adapts or self._warms):
            return
        before = self._tensors()
        saved = {name: tensor.numpy() for name, tensor in before.items()}
        try:
            if self._adapts:
                self._adapt()
            if self._warms:
                self._warm()
        except BaseException:
            self._set(before, saved)
            raise
        shared = self._worker.group.broadcast_tensors(list(before.values()))
        self._set(before, dict(zip(before, shared, strict=True)))

    def _tensors(self) -> dict[str, paddle.Tensor]:
        """What may change: neck, head, the layer that takes a map, and the losses' own."""
        own = {n: t for n, t in self._state.model.state_dict().items() if not n.startswith("backbone.")}
        own |= {n: t for n, t in self._state.model.state_dict().items() if self._adapts and takes_map(n)}
        return {**own, **{f"loss.{n}": t for n, t in self._state.loss_weights().items()}}

    def _set(self, tensors: Mapping[str, paddle.Tensor], values: Mapping[str, Any]) -> None:
        for name, tensor in tensors.items():
            tensor.set_value(values[name])
        if self._state.ema:
            self._state.ema.load(self._state.raw_weights())

    def _adapt(self) -> None:
        """Put a map of the features into the network if that is better than the start."""
        tensors = {n: t for n, t in self._tensors().items() if takes_map(n)}
        saved = {name: tensor.numpy() for name, tensor in tensors.items()}
        with self._trainer.candidate_by(self._trainer.exporter) as network:
            network.share()
            adapted = self._maps.at_start(network)
        if adapted is None:
            return
        self._set(tensors, adapted)
        if self._state.progress.start and not self._trainer.measure_adapted():
            log.warning("Train.adapt=start: it is no better than the start, so no map is applied.")
            self._set(tensors, saved)

    def _warm(self) -> None:
        settings, state = self._config.Train, self._state
        body = recognizer.build(network_spec(self._config), num_classes=None)
        body.neck = nn.Identity()
        preprocess = preprocess_of(self._config)
        exporter = Exporter(body, self._config.Global.model, preprocess)
        with self._trainer.candidate_by(exporter) as network:
            network.share()
            cached = self._cached(self._extractor(network, body), network.look)
            if settings.init_head == "class_means":
                means = class_means(cached.through(state.model.neck), self._data.num_classes, settings.seed)
                start_at_means([state.model.head, *state.criterion.losses.values()], means)
                log.info("Class vectors start at the mean features of %d classes.", len(means))
            if self._probe is not None:
                self._train_probe(self._probe, cached, network.look)

    def _extractor(self, network: Candidate, body: recognizer.Recognizer) -> Extractor:
        if self._worker.device == "cpu":
            return FeatureExtractor(network.inference(), self._worker.device, self._worker.threads, raw=True)
        extract = NetworkExtractor(body, preprocess_of(self._config), raw=True)
        extract.load(network.weights)
        return extract

    def _cached(self, extract: Extractor, look: Callable[[], None]) -> CachedFeatures:
        data, worker = self._data, self._worker
        return cache_features(
            extract,
            data.lists["train"].files(),
            data.labels,
            mirrored=self._probes,
            batch_size=self._config.Evaluate.batch_size,
            workers=worker.decoding_threads,
            group=worker.group,
            bad=data.bad,
            look=look,
        )

    def _train_probe(self, probe: Probe, cached: CachedFeatures, look: Callable[[], None]) -> None:
        settings, labels = self._config.Train, self._data.labels
        # Every rank trains on all features alike, so its batches are those of a single process.
        sampler = samplers.build(
            labels.tolist(),
            settings.batch_size,
            settings.samples_per_class,
            settings.seed,
            uniform=settings.class_sampling == "uniform",
        )

        def epochs(epoch: int) -> list[np.ndarray]:
            return [np.asarray(batch, np.int64) for batch in sampler.epoch(epoch)]

        rate = settings.probe_learning_rate or settings.learning_rate
        plan = ProbePlan(settings.probe_epochs, rate, settings.seed)
        probe.train(cached, epochs, lambda parameters: make_optimizer(settings, list(parameters)), plan, look)
