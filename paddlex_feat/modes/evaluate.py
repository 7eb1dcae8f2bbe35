"""Mode evaluate: recall@k and mAP of weights or of an inference directory, exact over the whole gallery."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

from paddlex_feat import launch
from paddlex_feat.config.schema import Config
from paddlex_feat.dataset.records import ImageList, require_lists
from paddlex_feat.errors import FeatError
from paddlex_feat.files import require_writable
from paddlex_feat.group import Group
from paddlex_feat.modes import evaluate_model
from paddlex_feat.modes.common import launch_processes, require_images
from paddlex_feat.retrieval import report
from paddlex_feat.retrieval.evaluator import Evaluator
from paddlex_feat.retrieval.features_file import write_features
from paddlex_feat.retrieval.matches import own_pairs, require_matches

log = logging.getLogger(__name__)


def run(config: Config, output: Path) -> dict[str, Any]:
    """Evaluate here, or start a process for each of several devices and wait for them.

    All that lists, folders and configuration tell is checked before Paddle is imported.
    """
    settings, group, folder = config.Evaluate, Group.from_environment(), output / "evaluate"
    lists = _read_lists(config)
    path = evaluate_model.find(config)
    if group.rank == 0:
        require_writable(folder)
    if launch.wanted(config.Global.device, None):
        return launch_processes(config, output)
    model = evaluate_model.make_ready(config, path, group)
    evaluator = Evaluator(
        lists,
        settings.batch_size,
        model.place.workers,
        group,
        exclude_own=settings.exclude_own,
        recall_ks=settings.recall_ks,
        memory=settings.memory_mib * 2**20 // group.local_size,
        threads=config.Global.threads,
        scratch=output,
    )
    evaluation = evaluator(model.extract)
    if group.rank:
        return {}
    result = {"metrics": evaluation.headline(), "weight_path": str(path)}
    try:
        result |= report.write(evaluation, lists["query"], lists["gallery"], folder, str(path))
        if settings.save_features:
            file = folder / "features.npz"
            write_features(file, evaluation.gallery, evaluation.query, lists["gallery"], lists["query"])
            log.info("Features: %s", file)
            result["features"] = f"{folder.name}/{file.name}"
    except FeatError as error:  # such as a full disk: what was measured is not lost
        error.with_result(result)
        raise
    return result


def _read_lists(config: Config) -> dict[str, ImageList]:
    """gallery.txt and query.txt, which could be evaluated. Raises DatasetError."""
    lists = require_lists(config.Global.dataset_dir, ("gallery", "query"))
    gallery, query = lists["gallery"], lists["query"]
    require_matches(query, gallery, own_pairs(query, gallery) if config.Evaluate.exclude_own else None)
    for records in lists.values():
        missing = [i for i, file in enumerate(records.files()) if not os.path.exists(file)]  # noqa: PTH110 - for speed
        require_images(records, missing)
    return lists
