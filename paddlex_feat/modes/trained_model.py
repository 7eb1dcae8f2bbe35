"""What mode evaluate evaluates: weights or an inference directory, found, explained and made ready."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError
from paddlex_feat.fileio.atomic_folder import resolve_during_swap
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.hub.urls import is_url
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.model_info import PREFIX
from paddlex_feat.modes.build import load_trained, preprocess_of, say_contradictions
from paddlex_feat.modes.weight_paths import require_weights, weight_file
from paddlex_feat.modes.worker import Place, take_place, threads_of
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.gpus import require_amp
from paddlex_feat.runtime.paddle_import import prepare_paddle

if TYPE_CHECKING:
    from paddlex_feat.evaluation.embed import Extractor

log = logging.getLogger(__name__)
KEY = "Evaluate.weight_path"


@dataclass(frozen=True)
class Model:
    """What is evaluated, ready to compute, and where it computes."""

    extract: Extractor
    place: Place


def find(config: Config) -> Path:
    """The weight file or inference directory of Evaluate.weight_path; a URL is fetched. Paddle is not imported.

    Raises WeightsError for what is neither, DownloadError.
    """
    given = config.Evaluate.weight_path
    path = None if given is None or is_url(given) else resolve_during_swap(Path(given))
    if path is None:
        return weight_file(KEY, given, config.Global.model)
    require_weights(KEY, path, graphs=True)
    if path.is_dir() and config.Evaluate.amp != "OFF":
        raise ConfigError(
            "The graph of an inference directory has its own precision.",
            where="Evaluate.amp",
            fix=f"Leave it OFF, or give the .pdparams file with -o {KEY}=FILE.",
        )
    return path


def make_ready(config: Config, path: Path, group: ProcessGroup) -> Model:
    """Import Paddle, choose the device and load what `find` found.

    On a CPU weights run as the exported graph, which is several times faster there and is what will
    be deployed; on a GPU the network runs itself. Raises DeviceError for mixed precision
    on a CPU, or in a format that the GPU lacks.
    """
    prepare_paddle(threads_of(config, group))
    place = take_place(config, group)
    if config.Evaluate.amp != "OFF":
        require_amp(place.device, config.Train.amp_dtype, "Evaluate.amp")
    if path.is_dir():
        return Model(_inference_directory(config, path, place), place)
    trained = load_trained(config, path)
    preprocess = preprocess_of(trained.config)
    if place.device != "cpu":
        from paddlex_feat.inference.network import NetworkExtractor

        amp_dtype = config.Train.amp_dtype if config.Evaluate.amp != "OFF" else None
        return Model(NetworkExtractor(trained.network, preprocess, amp_dtype), place)

    from paddlex_feat.inference.export.exporter import Exporter

    with TemporaryFolder() as temporary:
        folder = temporary / "inference"
        exporter = Exporter(trained.network, trained.config.Global.model, preprocess)
        exporter.write(trained.network.state_dict(), folder)
        return Model(FeatureExtractor(folder, place.device, place.threads), place)


def _inference_directory(config: Config, folder: Path, place: Place) -> FeatureExtractor:
    extract = FeatureExtractor(folder, place.device, place.threads, unit=True)
    info = extract.info
    if not info.normalise_features:
        log.warning("%s does not ask for NormalizeFeatures: compared are unit features even so.", folder)
    log.info("Inference model %s: %s at %d px", folder, info.name, info.preprocess.size)
    pairs = {
        "Global.model": (info.name, config.Global.model),
        "Train.input_size": (info.preprocess.size, config.Train.input_size),
        "Train.interpolation": (info.preprocess.interpolation, config.Train.interpolation),
    }
    say_contradictions(pairs, folder / f"{PREFIX}.yml")
    return extract
