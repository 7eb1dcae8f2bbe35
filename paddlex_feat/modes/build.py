"""Build what a configuration describes: pre-processing, evaluator, exporter. The parts of networks: `parts`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddlex_feat.config.schema import Config
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import ConfigError
from paddlex_feat.models.registry import find_backbone
from paddlex_feat.modes.worker import Worker, threads_of

if TYPE_CHECKING:
    from paddlex_feat.evaluation.evaluator import Evaluator
    from paddlex_feat.inference.export.exporter import Exporter
    from paddlex_feat.models.recognizer import Recognizer


def evaluator_of(
    config: Config, lists: dict[str, ImageList], own: np.ndarray | None, place: Worker, scratch: Path
) -> Evaluator:
    """What evaluates on these lists by the keys of the section Evaluate.

    Args:
        own: pairs that are left out, from `self_pairs_of`.
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


def preprocess_of(config: Config) -> Preprocess:
    """The one pre-processing that the configuration describes."""
    return Preprocess(size=config.Train.input_size, interpolation=config.Train.interpolation)


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
