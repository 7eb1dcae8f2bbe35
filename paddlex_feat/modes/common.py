"""What several modes compose in the same way."""

from __future__ import annotations

import logging
from pathlib import Path

from paddlex_feat.config.load import load
from paddlex_feat.config.schema import Config
from paddlex_feat.pipeline.preprocess import Preprocess

log = logging.getLogger(__name__)


def preprocess_of(config: Config) -> Preprocess:
    """The one pre-processing that the configuration describes."""
    return Preprocess(size=config.Train.input_size, interpolation=config.Train.interpolation)


def run_config(weights: Path, config: Config) -> Config:
    """The configuration that `weights` were trained with: config.yaml beside them or one level up.

    Without such a file it is `config`. What contradicts `config` is said in the log.
    """
    for folder in (weights.parent, weights.parent.parent):
        path = folder / "config.yaml"
        if path.is_file():
            own, _ = load(str(path), [("Global.mode", config.Global.mode)])
            _say_contradictions(own, config, path)
            return own
    log.warning("No config.yaml beside %s or above it: network and input size are taken from -c.", weights)
    return config


def _say_contradictions(own: Config, config: Config, path: Path) -> None:
    pairs = {
        "Global.model": (own.Global.model, config.Global.model),
        "Train.input_size": (own.Train.input_size, config.Train.input_size),
        "Train.interpolation": (own.Train.interpolation, config.Train.interpolation),
    }
    for key, (used, given) in pairs.items():
        if used != given:
            log.warning("%s is %s in %s and %s in -c: using %s, as trained.", key, used, path, given, used)
