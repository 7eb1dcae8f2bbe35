"""What a new run does before its first step: class vectors at class means, the linear probe."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager

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
from paddlex_feat.modes.worker import Worker
from paddlex_feat.training.cached_features import CachedFeatures, cache_features
from paddlex_feat.training.candidate import Candidate
from paddlex_feat.training.checkpoint import TrainingState
from paddlex_feat.training.class_means import class_means, start_at_means
from paddlex_feat.training.probe import Probe, ProbePlan

log = logging.getLogger(__name__)


class WarmStart:
    """Callable: changes neck, head and losses of a new run before its first step, as Train.method and init_head ask.

    All of it follows from the start weights, the images and the seed. A run that ends before its first step does it
    again when it is resumed; later the checkpoints hold the result.

    Args:
        open_candidate: the network as it is now, and a folder for its export.
    """

    def __init__(
        self,
        config: Config,
        state: TrainingState,
        data: Data,
        worker: Worker,
        open_candidate: Callable[[Exporter], AbstractContextManager[Candidate]],
    ):
        self._config, self._state, self._data, self._worker = config, state, data, worker
        self._open_candidate = open_candidate
        self._probes = config.Train.method != "full"
        self._probe = Probe(state.model, state.criterion) if self._probes else None

    def __call__(self) -> None:
        """Raises Interrupted on all ranks alike; network and losses are then as they were before."""
        settings = self._config.Train
        if settings.method == "full" and settings.init_head == "random":
            return
        before = self._tensors()
        saved = {name: tensor.numpy() for name, tensor in before.items()}
        try:
            self._change()
        except BaseException:
            for name, tensor in before.items():
                tensor.set_value(saved[name])
            raise
        shared = self._worker.group.broadcast_tensors(list(before.values()))
        for tensor, value in zip(before.values(), shared, strict=True):
            tensor.set_value(value)
        if self._state.ema:
            self._state.ema.load(self._state.raw_weights())

    def _tensors(self) -> dict[str, paddle.Tensor]:
        """What may change: neck, head, and the losses' own."""
        model = {n: t for n, t in self._state.model.state_dict().items() if not n.startswith("backbone.")}
        return {**model, **{f"loss.{n}": t for n, t in self._state.loss_weights().items()}}

    def _change(self) -> None:
        settings, state = self._config.Train, self._state
        body = recognizer.build(network_spec(self._config), num_classes=None)
        body.neck = nn.Identity()
        preprocess = preprocess_of(self._config)
        exporter = Exporter(body, self._config.Global.model, preprocess)
        with self._open_candidate(exporter) as network:
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
