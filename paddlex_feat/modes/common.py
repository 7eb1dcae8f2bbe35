"""What several modes compose in the same way."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddlex_feat import hub
from paddlex_feat.config.load import load
from paddlex_feat.config.schema import Config
from paddlex_feat.dataset.records import find_root, read_list
from paddlex_feat.errors import ConfigError, DatasetError
from paddlex_feat.pipeline.decode import read_rgb
from paddlex_feat.pipeline.preprocess import Preprocess
from paddlex_feat.runtime import first_device, prepare_paddle, select_device

if TYPE_CHECKING:
    from paddlex_feat.models.recognizer import Recognizer
    from paddlex_feat.models.spec import NetworkSpec

log = logging.getLogger(__name__)
COMPARED_IMAGES = 8


@dataclass(frozen=True)
class Trained:
    """A network with its weights, for features alone: its head is not filled.

    Attributes:
        path: the weight file. config: the configuration it was trained with.
        device: "cpu" or "gpu:N".
    """

    path: Path
    config: Config
    device: str
    network: Recognizer


def load_trained(config: Config, key: str, weight_path: str | None) -> Trained:
    """Import Paddle and load the weights that the configuration key `key` names: a file or a URL."""
    if not weight_path:
        raise ConfigError("No weights are given.", where=key, fix="Give a .pdparams file, e.g. best_model's, or a URL.")
    path = hub.local_file(weight_path, "weights", f"Give a local file with -o {key}=FILE.", hub.PICKLE)
    own = run_config(path, config)
    prepare_paddle(config.Global.threads)

    from paddlex_feat.models import recognizer, weights

    device = select_device(first_device(config.Global.device))
    network = recognizer.build(network_spec(own), num_classes=1)
    log.info("Weights %s: %s", path, weights.load(network, path, head="ignored"))
    return Trained(path, own, device, network)


def network_spec(config: Config) -> NetworkSpec:
    """The network that the configuration describes."""
    from paddlex_feat.models.spec import NetworkSpec

    return NetworkSpec(**config.Model.model_dump(), input_size=config.Train.input_size)


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
            try:
                own, _ = load(str(path), [("Global.mode", config.Global.mode)])
            except ConfigError as error:  # PaddleClas, for one, leaves a file of the same name
                log.warning("%s is no configuration of this program: -c is used.", path)
                log.debug("%s", error)
                return config
            _say_contradictions(own, config, path)
            return own
    log.warning("No config.yaml beside %s or above it: network and input size are taken from -c.", weights)
    return config


def _say_contradictions(own: Config, config: Config, path: Path) -> None:
    pairs = {
        "Global.model": (own.Global.model, config.Global.model),
        "Model": (own.Model, config.Model),
        "Train.input_size": (own.Train.input_size, config.Train.input_size),
        "Train.interpolation": (own.Train.interpolation, config.Train.interpolation),
    }
    for key, (used, given) in pairs.items():
        if used != given:
            log.warning("%s is %s in %s and %s in -c: using %s, as trained.", key, used, path, given, used)


def comparison_images(dataset_dir: str, preprocess: Preprocess) -> tuple[np.ndarray, str]:
    """Up to COMPARED_IMAGES gallery images, uint8 [N, S, S, 3]; noise where no data set is there."""
    try:
        gallery, _ = read_list(find_root(dataset_dir), "gallery")
    except DatasetError:
        gallery = None
    if not gallery:
        shape = (COMPARED_IMAGES, preprocess.size, preprocess.size, 3)
        return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), f"{COMPARED_IMAGES} random images"
    files = gallery.files()[:COMPARED_IMAGES]
    return np.stack([preprocess.resize(read_rgb(f)) for f in files]), f"{len(files)} gallery images"
