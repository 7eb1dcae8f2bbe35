"""What mode evaluate evaluates: weights or an inference directory, found, explained and made ready."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paddlex_feat import hub
from paddlex_feat.config.schema import Config
from paddlex_feat.config.section import official_weights
from paddlex_feat.errors import ConfigError, DeviceError, WeightsError
from paddlex_feat.files import settled
from paddlex_feat.group import Group
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.info import PREFIX
from paddlex_feat.modes.common import (
    Place,
    load_trained,
    preprocess_of,
    say_contradictions,
    take_place,
    threads_of,
    weight_file,
)
from paddlex_feat.runtime import prepare_paddle
from paddlex_feat.scratch import ScratchFolder

if TYPE_CHECKING:
    from paddlex_feat.retrieval.embed import Extractor

log = logging.getLogger(__name__)
KEY = "Evaluate.weight_path"


@dataclass(frozen=True)
class Model:
    """What is evaluated, ready to compute, and where it computes."""

    extract: Extractor
    place: Place


def find(config: Config) -> Path:
    """The weight file or inference directory of Evaluate.weight_path; a URL is fetched. Paddle is not imported.

    Raises WeightsError for what is not there and for a folder that is no inference directory, DownloadError.
    """
    given = config.Evaluate.weight_path
    if given is None:
        given = official_weights(config.Global.model)
        log.info("%s is null: the official weights of %s, %s", KEY, config.Global.model, given)
    if hub.is_url(given) or not given:
        return weight_file(KEY, given)
    path = settled(Path(given))
    if not path.exists():
        raise WeightsError(
            "The weight file does not exist.", where=f"{KEY}={path}", fix="Check the path, or train first."
        )
    if path.is_dir():
        _require_inference_directory(path)
        if config.Evaluate.amp != "OFF":
            raise ConfigError(
                "The graph of an inference directory has its own precision.",
                where="Evaluate.amp",
                fix=f"Leave it OFF, or give the .pdparams file with -o {KEY}=FILE.",
            )
    return path


def _require_inference_directory(folder: Path) -> None:
    """Raise WeightsError that tells what the folder lacks, and what was probably meant."""
    graphs = [f"{PREFIX}.json", f"{PREFIX}.pdmodel"]
    lacks = [f"{PREFIX}{suffix}" for suffix in (".yml", ".pdiparams") if not (folder / f"{PREFIX}{suffix}").is_file()]
    if not any((folder / name).is_file() for name in graphs):
        lacks.append(" or ".join(graphs))
    if not lacks:
        return
    within = [folder, *sorted(f for f in folder.iterdir() if f.is_dir())]
    best = folder / "best_model"
    within.sort(key=lambda f: f not in (folder, best))
    meant = [str(file) for f in within for file in sorted(f.glob("*.pdparams"))[:1]][:1]
    meant += [str(f / "inference") for f in within if (f / "inference" / f"{PREFIX}.yml").is_file()][:1]
    raise WeightsError(
        f"The folder is no inference directory: it lacks {', '.join(lacks)}.",
        where=f"{KEY}={folder}",
        fix=f"Give {' or '.join(meant)}." if meant else "Give a .pdparams file, or a folder that mode export wrote.",
    )


def make_ready(config: Config, path: Path, group: Group) -> Model:
    """Import Paddle, choose the device and load what `find` found.

    On a CPU weights run as the exported graph, which is several times faster there and is what will
    be deployed; on a GPU the network runs itself. Raises DeviceError for mixed precision on a CPU.
    """
    prepare_paddle(threads_of(config, group))
    place = take_place(config, group)
    if config.Evaluate.amp != "OFF" and place.device == "cpu":
        raise DeviceError(
            "Mixed precision needs a GPU: on a CPU, Paddle's autocast has no effect.",
            where="Evaluate.amp",
            fix="Leave Evaluate.amp OFF, or evaluate on a GPU.",
        )
    if path.is_dir():
        return Model(_inference_directory(config, path, place), place)
    trained = load_trained(config, path)
    preprocess = preprocess_of(trained.config)
    if place.device != "cpu":
        from paddlex_feat.inference.network import NetworkExtractor

        amp_dtype = config.Train.amp_dtype if config.Evaluate.amp != "OFF" else None
        return Model(NetworkExtractor(trained.network, preprocess, amp_dtype), place)

    from paddlex_feat.inference.export import Exporter

    with ScratchFolder() as temporary:
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
