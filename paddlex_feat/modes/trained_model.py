"""Trained models: weight files with the configuration of their run, and inference directories."""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlex_feat.config.base import STARTER
from paddlex_feat.config.load import load
from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError, WeightsError
from paddlex_feat.fileio import lookup, safe_yaml
from paddlex_feat.fileio.atomic_folder import resolve_during_swap
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.hub.starter import is_starter
from paddlex_feat.hub.urls import is_url
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.model_info import PREFIX
from paddlex_feat.models.registry import find_backbone
from paddlex_feat.modes.build import preprocess_of
from paddlex_feat.modes.parts import find_problems, network_spec
from paddlex_feat.modes.weight_paths import require_weights, weight_file
from paddlex_feat.modes.worker import Worker, init_worker, threads_of
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.gpus import require_amp
from paddlex_feat.runtime.paddle_import import prepare_paddle

if TYPE_CHECKING:
    from paddlex_feat.evaluation.embed import Extractor
    from paddlex_feat.models.recognizer import Recognizer

log = logging.getLogger(__name__)
KEY = "Evaluate.weight_path"
SPARE_BYTES = 2**26  # by which a weight file may be smaller than its network: position embeddings, small tensors


@dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to compute.

    Attributes:
        extract: computes features of images.
        worker: where it computes.
    """

    extract: Extractor
    worker: Worker


def resolve_weights(config: Config) -> Path:
    """Return the weight file or inference directory of Evaluate.weight_path, without importing Paddle.

    A URL is downloaded.

    Raises:
        WeightsError: the path is neither.
        DownloadError: the download failed.
    """
    given = config.Evaluate.weight_path
    path = None if given in (None, STARTER) or is_url(given) else resolve_during_swap(Path(given))
    if path is None:
        return weight_file(KEY, given, config.Global.model)
    require_weights(KEY, path, graphs=True)
    if path.is_dir() and config.Evaluate.amp != "OFF":
        raise ConfigError(
            "The graph of an inference directory has its own precision.",
            where="Evaluate.amp",
            fix=f"Leave it OFF, or give the .pdparams file with -o {KEY}=FILE.",
            code="amp-of-graph",
        )
    return path


def load_model(config: Config, path: Path, group: ProcessGroup) -> LoadedModel:
    """Import Paddle, choose the device and load the path that `resolve_weights` returned.

    On a CPU, weights are exported first: the graph is several times faster there, and is what will be deployed. On a
    GPU the network itself runs.

    Raises:
        DeviceError: mixed precision on a CPU, or in a format that the GPU lacks.
        WeightsError: the weights do not fit the network.
    """
    prepare_paddle(threads_of(config, group))
    worker = init_worker(config, group)
    if config.Evaluate.amp != "OFF":
        require_amp(worker.device, config.Train.amp_dtype, "Evaluate.amp")
    if path.is_dir():
        return LoadedModel(_inference_directory(config, path, worker), worker)
    trained = load_trained_network(config, path)
    preprocess = preprocess_of(trained.config)
    if worker.device != "cpu":
        from paddlex_feat.inference.network import NetworkExtractor

        amp_dtype = config.Train.amp_dtype if config.Evaluate.amp != "OFF" else None
        return LoadedModel(NetworkExtractor(trained.network, preprocess, amp_dtype), worker)

    from paddlex_feat.inference.export.exporter import Exporter

    with TemporaryFolder() as temporary:
        folder = temporary / "inference"
        exporter = Exporter(trained.network, trained.config.Global.model, preprocess)
        exporter.write(trained.network.state_dict(), folder)
        return LoadedModel(FeatureExtractor(folder, worker.device, worker.threads), worker)


def _inference_directory(config: Config, folder: Path, worker: Worker) -> FeatureExtractor:
    extract = FeatureExtractor(folder, worker.device, worker.threads, unit=True)
    info = extract.info
    if not info.normalise_features:
        log.warning("%s does not normalize features; they are normalized for evaluation.", folder)
    log.info("Inference model %s: %s at %d px", folder, info.name, info.preprocess.size)
    pairs = {
        "Global.model": (info.name, config.Global.model),
        "Train.input_size": (info.preprocess.size, config.Train.measured_size),
        "Train.interpolation": (info.preprocess.interpolation, config.Train.interpolation),
    }
    warn_config_mismatch(pairs, folder / f"{PREFIX}.yml")
    return extract


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights and without its head, which features do not need.

    Attributes:
        path: the weight file.
        config: the configuration that it was trained with.
        network: the network.
    """

    path: Path
    config: Config
    network: Recognizer


def load_trained_network(config: Config, path: Path) -> TrainedNetwork:
    """Build the network of a weight file by its run's configuration, and load the weights.

    Raises:
        WeightsError: the weights do not fit.
        ConfigError: the run's configuration is damaged.
    """
    own = run_config(path, config)

    from paddlex_feat.models import recognizer, weights

    _require_size(own, path)
    network = recognizer.build(network_spec(own), num_classes=None)
    log.info("Weights %s: %s", path, weights.load(network, path, head="ignored"))
    return TrainedNetwork(path, own, network)


def _require_size(trained: Config, path: Path) -> None:
    """Raise WeightsError if a file is too small for its network, before the network takes that memory.

    The file has every number of the network without head, in two bytes at least. Only position embeddings may be
    fewer, if they were learnt at a smaller input size: SPARE_BYTES allows for them.
    """
    import paddle

    from paddlex_feat.models import recognizer

    file = resolve_during_swap(path)
    if not file.is_file():
        what = lookup.problem("The weight file", path, "file")
        raise WeightsError(what, where=str(path), fix="Check the path, or train first.", code="weights-missing")
    if not find_backbone(trained.Model.backbone).size_from_keys:
        return
    with paddle.LazyGuard():  # shapes without tensors
        network = recognizer.build(network_spec(trained), num_classes=None)
    numbers, size = sum(math.prod(p.shape) for p in network.parameters()), file.stat().st_size
    if 2 * numbers > size + SPARE_BYTES:
        raise WeightsError(
            f"The network has {numbers:,} numbers, more than a file of {size:,} bytes holds.",
            where=str(path),
            fix="Use the config.yaml that these weights were trained with, beside them or one level up.",
            code="weights-too-small",
        )


def run_config(weights: Path, config: Config) -> Config:
    """Return the configuration that `weights` were trained with: config.yaml beside them or one level up.

    Without such a file, and if the file is PaddleClas's, which has the same name, it is `config`. Differences to
    `config` are logged.

    Raises:
        ConfigError: the file is damaged.
    """
    path = config_beside(weights)
    if path is None:
        if not is_starter(weights):
            log.warning("No config.yaml beside %s or one level up: network and input size are taken from -c.", weights)
        return config
    try:
        own, notices = load(str(path), [("Global.mode", config.Global.mode)], usable=False, check=find_problems)
    except ConfigError as error:
        if not _of_paddleclas(path):
            raise ConfigError(
                f"The configuration that these weights were trained with is damaged. {error.what}",
                where=str(path),
                fix="Repair or remove it; without it, network and input size are taken from -c.",
                code="run-config-damaged",
            ) from error
        log.warning("%s was written by PaddleClas: -c is used instead.", path)
        return config
    for notice in notices:
        log.info("%s: %s", path, notice)
    _warn_of_mismatch(own, config, path)
    return own


def config_beside(weights: Path) -> Path | None:
    """The config.yaml beside weights or one level up."""
    paths = (folder / "config.yaml" for folder in (weights.parent, weights.parent.parent))
    return next((path for path in paths if path.is_file()), None)


def _of_paddleclas(path: Path) -> bool:
    try:
        return bool(re.search(r"^Arch:", safe_yaml.read_text(path), re.MULTILINE))
    except (OSError, UnicodeDecodeError):
        return False


def _warn_of_mismatch(own: Config, config: Config, path: Path) -> None:
    pairs = {
        "Global.model": (own.Global.model, config.Global.model),
        "Model": (own.Model, config.Model),
        # Train.recipe=auto has chosen another size in the training, from the data.
        **({} if own.Train.recipe else {"Train.input_size": (own.Train.input_size, config.Train.input_size)}),
        "Train.interpolation": (own.Train.interpolation, config.Train.interpolation),
        "Train.normalization": (own.Train.normalization, config.Train.normalization),
    }
    warn_config_mismatch(pairs, path)


def warn_config_mismatch(pairs: dict[str, tuple[Any, Any]], path: Path) -> None:
    """Warn of each key whose trained value differs from that of -c.

    Args:
        pairs: key -> (value in `path`, which is used; value of -c).
        path: where the used values come from.
    """
    for key, (used, given) in pairs.items():
        if used != given:
            log.warning("%s is %s in %s and %s in -c: using %s, as trained.", key, used, path, given, used)
