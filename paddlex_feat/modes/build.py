"""Build what a configuration describes: pre-processing, evaluator, exporter. The parts of networks: `parts`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddlex_feat.config.schema import Config
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.images.transform_ops import CLIP_MEAN, CLIP_STD, MEAN, STD
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import ConfigError
from paddlex_feat.models.registry import find_backbone
from paddlex_feat.modes.worker import Worker, threads_of

if TYPE_CHECKING:
    from paddlex_feat.evaluation.embed import Extractor
    from paddlex_feat.evaluation.evaluator import Evaluator
    from paddlex_feat.inference.export.exporter import Exporter
    from paddlex_feat.models.recognizer import Recognizer


def evaluator_of(
    config: Config, lists: dict[str, ImageList], self_pairs: np.ndarray | None, worker: Worker, scratch: Path
) -> Evaluator:
    """Build the evaluator of these lists by the section Evaluate.

    Args:
        config: the configuration.
        lists: "gallery" and "query".
        self_pairs: pairs that are left out, int64 [P, 2], from `self_pairs_of`.
        worker: where the features are computed.
        scratch: folder for features that do not fit in memory.
    """
    from paddlex_feat.evaluation.evaluator import Evaluator

    settings, group = config.Evaluate, worker.group
    return Evaluator(
        lists,
        settings.batch_size,
        worker.decoding_threads,
        group,
        self_pairs=self_pairs,
        recall_ks=settings.recall_ks,
        memory=settings.memory_mib * 2**20 // group.local_size,
        threads=threads_of(config, group) or worker.processors,  # decoding may have fewer
        scratch=scratch,
    )


def extractor_of(config: Config, extract: Extractor) -> Extractor:
    """What an evaluation computes features by: `extract`, with mirror images if Evaluate.mirror asks for them."""
    from paddlex_feat.inference.mirror import MirrorAverage

    return MirrorAverage(extract) if config.Evaluate.mirror else extract


def preprocess_of(config: Config) -> Preprocess:
    """Build the pre-processing of evaluation and export; that of the training differs in size alone."""
    backbone = find_backbone(config.Model.backbone)
    own = backbone.mean or MEAN, backbone.std or STD
    mean, std = {"imagenet": (MEAN, STD), "clip": (CLIP_MEAN, CLIP_STD), None: own}[config.Train.normalization]
    return Preprocess(config.Train.measured_size, config.Train.interpolation, mean, std)


def exporter_of(config: Config, trained: Config, network: Recognizer, dimension: int | None = None) -> Exporter:
    """Build the exporter of a network by the sections Export and Global.

    Args:
        config: the configuration of the export.
        trained: the configuration that the network was built by.
        network: the network, without head.
        dimension: numbers of a feature, where they were cut to fewer than the model's.

    Raises:
        ConfigError: images of any size are asked for, and the network takes one size only.
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
    return Exporter(network, trained.Global.model, preprocess_of(trained), any_size, pir, dimension)
