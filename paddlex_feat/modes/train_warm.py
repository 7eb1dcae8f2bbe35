"""What a new run does before its first step: a map of the features, class vectors at class means, the linear probe."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import paddle

from paddlex_feat.config.schema import Config
from paddlex_feat.data import samplers
from paddlex_feat.modes.train_build import make_optimizer
from paddlex_feat.modes.train_data import Data
from paddlex_feat.modes.train_features import TrainingFeatures
from paddlex_feat.modes.train_map import FeatureMaps
from paddlex_feat.training.adaptation.fold import takes_map
from paddlex_feat.training.cached_features import CachedFeatures
from paddlex_feat.training.class_means import class_means, start_at_means
from paddlex_feat.training.probe import Probe, ProbePlan
from paddlex_feat.training.trainer import Trainer

log = logging.getLogger(__name__)


class WarmStart:
    """Callable: changes a new run before its first step, as Train.adapt, method and init_head ask.

    All of it follows from the start weights, the images and the seed. A run that ends before its first step does it
    again when it is resumed; later the checkpoints hold the result.
    """

    def __init__(self, config: Config, trainer: Trainer, data: Data, features: TrainingFeatures, maps: FeatureMaps):
        self._config, self._trainer, self._data = config, trainer, data
        self._state = state = trainer.state
        self._features, self._maps = features, maps
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
        progress = self._state.progress
        best = (progress.adapted, progress.best, progress.best_map)
        try:
            self._change()
        except BaseException:
            self._set(before, saved)
            progress.adapted, progress.best, progress.best_map = best
            raise
        shared = self._trainer.group.broadcast_tensors(list(before.values()))
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

    def _adapt(self) -> tuple[CachedFeatures, bool]:
        """Put a map of the features, and a pooling, into the network if that is better than the start.

        Returns what the backbone gave by the pooling that it has now, and whether there is a map.
        """
        tensors = {n: t for n, t in self._tensors().items() if takes_map(n)}
        saved = {name: tensor.numpy() for name, tensor in self._state.weights().items()}
        exponents = self._features.exponents_of(saved)
        before_neck = self._features.before_neck_by(exponents)
        found = self._maps.at_start(before_neck, exponents, saved)
        if found is None:
            return before_neck[0], False
        number, adapted = found
        self._set(tensors, adapted)
        if self._state.progress.start and not self._trainer.measure_adapted():
            log.warning("Train.adapt=start: the adapted start is not better than the start: the map is not applied.")
            self._set(tensors, saved)
            return before_neck[0], False
        return before_neck[number], True

    def _change(self) -> None:
        settings, state = self._config.Train, self._state
        if self._adapts:
            cached, moved = self._adapt()
        else:
            cached, moved = self._features.before_neck(mirrored=self._probes), False
        if moved and self._warms and self._config.Model.neck == "bn":  # the map is in the backbone's last layer
            cached = self._features.before_neck(mirrored=self._probes)
        if settings.init_head == "class_means":
            means = class_means(cached.through(state.model.neck), self._data.num_classes, settings.seed)
            start_at_means([state.model.head, state.classifier, *state.criterion.losses.values()], means)
            log.info("Class vectors start at the mean features of %d classes.", len(means))
        if self._probe is not None:
            with self._trainer.candidate_by(self._trainer.exporter) as network:
                self._train_probe(self._probe, cached, network.look)

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
