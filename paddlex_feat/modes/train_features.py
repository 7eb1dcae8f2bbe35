"""Features of the training images: what maps, class means and the linear probe of a training begin with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from paddle import nn

from paddlex_feat.config.schema import Config
from paddlex_feat.evaluation.embed import Extractor
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.network import NetworkExtractor
from paddlex_feat.models import recognizer
from paddlex_feat.models.pooling import compared_exponents
from paddlex_feat.models.projection import pooled_by
from paddlex_feat.modes.build import preprocess_of
from paddlex_feat.modes.parts import network_spec
from paddlex_feat.modes.train_data import Data
from paddlex_feat.modes.worker import Worker
from paddlex_feat.training.adaptation.fold import EXPONENT
from paddlex_feat.training.cached_features import CachedFeatures, cache_features
from paddlex_feat.training.candidate import Candidate
from paddlex_feat.training.trainer import Trainer

Weights = Mapping[str, np.ndarray]


class TrainingFeatures:
    """Computes features of all training images; all ranks call its methods, share the images and get the same result.

    Args:
        config: the run's configuration.
        trainer: of the run.
        data: the data of the run.
        worker: this process.
    """

    def __init__(self, config: Config, trainer: Trainer, data: Data, worker: Worker):
        self._config, self._trainer, self._data, self._worker = config, trainer, data, worker

    def before_neck(self, weights: Weights | None = None, *, mirrored: bool = True) -> CachedFeatures:
        """What the backbone gives: of the network as it is now, or with other weights. Raises Interrupted."""
        return self.before_neck_by((), weights, mirrored=mirrored)[0]

    def exponents_of(self, weights: Weights) -> tuple[float, ...]:
        """The exponents of the pooling that can be compared, those of the weights first."""
        return compared_exponents(weights.get(EXPONENT))

    def before_neck_by(
        self, exponents: Sequence[float], weights: Weights | None = None, *, mirrored: bool = True
    ) -> list[CachedFeatures]:
        """As `before_neck`, by each of several exponents of the pooling; by its own if none are given."""
        body = recognizer.build(network_spec(self._config), num_classes=None)
        body.neck = nn.Identity()
        if len(exponents) > 1:
            body = pooled_by(body, exponents)
        exporter = Exporter(body, self._config.Global.model, preprocess_of(self._config))
        data, worker = self._data, self._worker
        with self._trainer.candidate_by(exporter, weights) as network:
            if weights is None:
                network.share()
            cached = cache_features(
                self.extractor(network, body),
                data.lists["train"].files(),
                data.labels,
                mirrored=mirrored,
                batch_size=self._config.Evaluate.batch_size,
                workers=worker.decoding_threads,
                group=worker.group,
                bad=data.bad,
                look=network.look,
            )
        return cached.divided(max(1, len(exponents)))

    def after_neck(self, cached: CachedFeatures, weights: Weights) -> CachedFeatures:
        """The features of the network with these weights, of what its backbone gives."""
        neck = recognizer.build(network_spec(self._config), num_classes=None).neck
        neck.set_state_dict({name: weights[f"neck.{name}"] for name in neck.state_dict()})
        behind: CachedFeatures = cached.through(neck)
        return behind

    def extractor(self, network: Candidate, built: recognizer.Recognizer) -> Extractor:
        """Pixels to raw features of a candidate: its exported graph on a CPU, `built` with its weights on a GPU."""
        if self._worker.device == "cpu":
            return FeatureExtractor(network.inference(), self._worker.device, self._worker.threads, raw=True)
        extract = NetworkExtractor(built, preprocess_of(self._config), raw=True)
        extract.load(network.weights)
        return extract
