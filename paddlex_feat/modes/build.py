"""What several modes compose in the same way."""

from __future__ import annotations

import logging
import math
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from paddlex_feat.config.load import load
from paddlex_feat.config.schema import Config
from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import find_root, reader_of
from paddlex_feat.errors import ConfigError, DatasetError, ImageError, WeightsError
from paddlex_feat.evaluation.matches import describe_self_matches, find_self_pairs, require_matches
from paddlex_feat.fileio import lookup, safe_yaml
from paddlex_feat.fileio.atomic_folder import resolve_during_swap
from paddlex_feat.models.registry import find_backbone
from paddlex_feat.modes.parts import find_problems, network_spec
from paddlex_feat.modes.worker import Worker, threads_of

if TYPE_CHECKING:
    from paddlex_feat.evaluation.evaluator import Evaluator
    from paddlex_feat.inference.export.exporter import Exporter
    from paddlex_feat.models.recognizer import Recognizer

log = logging.getLogger(__name__)
COMPARED_IMAGES = 8
SPARE_BYTES = 2**26
OTHER_SIZE = 32  # pixels more, a multiple of every network's stride


@dataclass(frozen=True)
class TrainedNetwork:
    """A network with its weights, for features alone: it has no head.

    Attributes:
        path: the weight file. config: the configuration it was trained with.
    """

    path: Path
    config: Config
    network: Recognizer


def load_trained_network(config: Config, path: Path) -> TrainedNetwork:
    """The network of a weight file, built as its run's configuration says, and filled.

    Raises WeightsError for weights that do not fit, ConfigError for a damaged configuration.
    """
    own = run_config(path, config)

    from paddlex_feat.models import recognizer, weights

    _require_in_proportion(own, path)
    network = recognizer.build(network_spec(own), num_classes=None)
    log.info("Weights %s: %s", path, weights.load(network, path, head="ignored"))
    return TrainedNetwork(path, own, network)


def _require_in_proportion(trained: Config, path: Path) -> None:
    """Raise WeightsError if a weight file is too small for its network, before that takes the memory.

    Every number of a network without head is in its file, with two bytes at least. Only positions may be fewer,
    learnt at a smaller input size: SPARE_BYTES leaves room for those, and for all that is small.
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


def evaluator_of(
    config: Config, lists: dict[str, ImageList], own: np.ndarray | None, place: Worker, scratch: Path
) -> Evaluator:
    """What evaluates on these lists by the keys of the section Evaluate.

    Args:
        own: pairs that are left out, from `own_files`.
        scratch: folder for features that do not fit in memory.
    """
    from paddlex_feat.evaluation.evaluator import Evaluator

    settings, group = config.Evaluate, place.group
    return Evaluator(
        lists,
        settings.batch_size,
        place.decoding_threads,
        group,
        self_pairs=own,
        recall_ks=settings.recall_ks,
        memory=settings.memory_mib * 2**20 // group.local_size,
        threads=threads_of(config, group) or place.processors,  # decoding may have fewer
        scratch=scratch,
    )


def own_files(config: Config, lists: dict[str, ImageList]) -> np.ndarray | None:
    """Pairs of a query with its own file in the gallery, if they are to be left out.

    Raises DatasetError if no query has a match otherwise.
    """
    query, gallery = lists["query"], lists["gallery"]
    own = find_self_pairs(query, gallery) if config.Evaluate.exclude_self else None
    require_matches(query, gallery, own)
    return own


def warn_of_own_files(config: Config, lists: dict[str, ImageList]) -> None:
    """Warn where queries are in the gallery themselves and find themselves, unless they are left out."""
    found = "" if config.Evaluate.exclude_self else describe_self_matches(lists["query"], lists["gallery"])
    if found:
        log.warning("%s", found)


def preprocess_of(config: Config) -> Preprocess:
    """The one pre-processing that the configuration describes."""
    return Preprocess(size=config.Train.input_size, interpolation=config.Train.interpolation)


def run_config(weights: Path, config: Config) -> Config:
    """The configuration that `weights` were trained with: config.yaml beside them or one level up.

    Without such a file it is `config`, and where PaddleClas, which leaves one of the same name, has trained them.
    What contradicts `config` is said in the log. Raises ConfigError for a damaged file.
    """
    for folder in (weights.parent, weights.parent.parent):
        path = folder / "config.yaml"
        if path.is_file():
            try:
                own, _ = load(str(path), [("Global.mode", config.Global.mode)], usable=False, check=find_problems)
            except ConfigError as error:
                if not _of_paddleclas(path):
                    raise ConfigError(
                        f"The configuration that these weights were trained with is damaged. {error.what}",
                        where=str(path),
                        fix="Mend it, or remove it: then network and input size are taken from -c.",
                    ) from error
                log.warning("%s is PaddleClas's, not of this program: -c is used.", path)
                return config
            _warn_of_mismatch(own, config, path)
            return own
    log.warning("No config.yaml beside %s or above it: network and input size are taken from -c.", weights)
    return config


def _of_paddleclas(path: Path) -> bool:
    try:
        return bool(re.search(r"^Arch:", safe_yaml.read_text(path), re.MULTILINE))
    except (OSError, UnicodeDecodeError):
        return False


def _warn_of_mismatch(own: Config, config: Config, path: Path) -> None:
    pairs = {
        "Global.model": (own.Global.model, config.Global.model),
        "Model": (own.Model, config.Model),
        "Train.input_size": (own.Train.input_size, config.Train.input_size),
        "Train.interpolation": (own.Train.interpolation, config.Train.interpolation),
    }
    warn_config_mismatch(pairs, path)


def warn_config_mismatch(pairs: dict[str, tuple[Any, Any]], path: Path) -> None:
    """Warn of each key whose value in `path`, which is used, is not that of -c: key -> (used, given)."""
    for key, (used, given) in pairs.items():
        if used != given:
            log.warning("%s is %s in %s and %s in -c: using %s, as trained.", key, used, path, given, used)


def require_images(records: ImageList, missing: list[int]) -> None:
    """Raise DatasetError if files of a list, by their indices, do not exist."""
    if not missing:
        return
    find, files = lookup.Lookup(records.root), records.files()
    hints = {i: find.explain(files[i], "file") for i in missing[:5]}
    rows = [f"\n    {records.where(i)}: {hint}" for i, hint in hints.items() if hint]
    raise DatasetError(
        f"{len(missing)} images of {records.name}.txt do not exist." + "".join(rows),
        where=", ".join(f"{records.where(i)} ({records.paths[i]})" for i in missing[:5]),
        fix="Correct the list; Global.mode=check_dataset lists all that is wrong.",
    )


def exporter_of(config: Config, trained: Config, network: Recognizer) -> Exporter:
    """What writes inference directories of a network, as the sections Export and Global of `config` say.

    trained: the configuration that the network was made by. Raises ConfigError if it cannot take images of any size.
    """
    from paddlex_feat.inference.export.exporter import Exporter

    any_size = config.Export.input_size == "dynamic"
    if any_size and find_backbone(trained.Model.backbone).fixed_size:
        raise ConfigError(
            f"The backbone {trained.Model.backbone} takes images of one size: it was trained for "
            f"{trained.Train.input_size} px.",
            where="Export.input_size=dynamic",
            fix="Leave Export.input_size fixed.",
            code="fixed-size",
        )
    pir = config.Global.export_with_pir
    return Exporter(network, trained.Global.model, preprocess_of(trained), any_size, pir)


def comparison_batches(config: Config, preprocess: Preprocess) -> tuple[list[np.ndarray], str]:
    """What an export is compared on: `comparison_images`, and for a graph of any size another size as well."""
    dataset, refused = config.Global.dataset_dir, config.CheckDataset.outside == "refuse"
    images, source = comparison_images(dataset, preprocess, refused)
    if config.Export.input_size == "fixed":
        return [images], source
    other = replace(preprocess, size=preprocess.size + OTHER_SIZE)
    batches = [images, comparison_images(dataset, other, refused)[0]]
    return batches, f"{source} at {preprocess.size} and {other.size} px"


def comparison_images(dataset_dir: str, preprocess: Preprocess, refuse_outside: bool = False) -> tuple[np.ndarray, str]:
    """The first COMPARED_IMAGES gallery images that can be read, uint8 [N, S, S, 3]; noise where there are none."""
    files: list[str] = []
    with suppress(DatasetError):
        root, names = find_root(dataset_dir), ("gallery",)
        lists, _ = reader_of(root, names).read(root, names, refuse_outside)
        files = lists["gallery"].files()[:COMPARED_IMAGES]
    images = []
    for file in files:
        try:
            images.append(preprocess.resize(read_rgb(file)))
        except ImageError as error:
            log.warning("Not compared on %s: %s", file, error.what)
    if images:
        return np.stack(images), f"{len(images)} gallery images"
    shape = (COMPARED_IMAGES, preprocess.size, preprocess.size, 3)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8), f"{COMPARED_IMAGES} random images"
