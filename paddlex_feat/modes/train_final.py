"""What a run does after its last epoch: averages of weights and a map of the features, as the section Train asks."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import paddle

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError
from paddlex_feat.hub.fetch import fetch_weights
from paddlex_feat.models import recognizer, weights
from paddlex_feat.modes.parts import network_spec
from paddlex_feat.modes.train_map import FeatureMaps
from paddlex_feat.training.adaptation.fold import start_neck_as_identity
from paddlex_feat.training.final_candidates import FinalCandidates
from paddlex_feat.training.trainer import Trainer


def final_candidates_of(config: Config, trainer: Trainer, maps: FeatureMaps) -> Callable[[], None]:
    """Build what Train.average and Train.adapt ask for; it does nothing by default.

    Raises:
        ConfigError: the start is asked for, and it is random.
    """
    settings = config.Train
    if not settings.average and "end" not in settings.adapt:
        return lambda: None
    start = start_weights(config) if "start" in settings.average else None
    mixed = None if start is None else lambda: maps.adapted_start(start)
    last = settings.average_last if "last" in settings.average else 0
    return FinalCandidates(trainer, last, mixed, maps.at_end if "end" in settings.adapt else None)


def start_weights(config: Config) -> dict[str, np.ndarray]:
    """Weights of backbone and neck that training starts from, float32 by name; also where a run is resumed."""
    path = config.Train.pretrain_weight_path
    if not path:
        raise ConfigError(
            "Training starts from random weights: an average with them is of no use.",
            where="Train.average",
            fix="Use -o Train.average=[last], or start from weights with Train.pretrain_weight_path.",
            code="average-without-start",
        )
    paddle.seed(config.Train.seed)  # a neck that the file does not have starts as it did in the training
    network = recognizer.build(network_spec(config), num_classes=None)
    report = weights.load(network, fetch_weights(path, "Give the file that the run started from."))
    if "start" in config.Train.adapt:
        start_neck_as_identity(network, report.reinitialised)
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}
