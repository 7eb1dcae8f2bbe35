"""Mode evaluate: recall@k and mAP of weights or of an inference model, by exact ranking of the whole gallery."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.config.schema import Config
from paddlex_feat.data.images.source import file_of
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import DatasetError, EvaluationError, FeatError, as_output_error
from paddlex_feat.evaluation.evaluator import Evaluation
from paddlex_feat.evaluation.features_file import FEATURES, write_features
from paddlex_feat.evaluation.sampling import LEVEL, intervals, sample_of
from paddlex_feat.fileio.atomic import read_result, require_writable
from paddlex_feat.inference.identity import ModelIdentity, identity_of
from paddlex_feat.inference.model_info import PREFIX
from paddlex_feat.modes import evaluate_shard, trained_model
from paddlex_feat.modes.build import evaluator_of, extractor_of
from paddlex_feat.modes.data import read_lists, require_images, self_pairs_of, warn_of_self_matches
from paddlex_feat.modes.worker import launch_processes
from paddlex_feat.provenance import run_record
from paddlex_feat.reports import evaluation_report
from paddlex_feat.runtime import heartbeat, launch
from paddlex_feat.runtime.distributed import ProcessGroup

log = logging.getLogger(__name__)


def run(config: Config, output: Path, group: ProcessGroup) -> dict[str, Any]:
    """Evaluate in this process, or start one per device and wait for them.

    Lists, folders and configuration are checked before Paddle is imported.
    """
    folder, whole = output / "evaluate", config.Evaluate.shard is None
    if group.rank == 0:
        require_writable(folder)
    if group.rank == 0 and whole:
        with as_output_error(folder):
            for name in (*evaluation_report.FILES, FEATURES):  # files of an earlier evaluation
                (folder / name).unlink(missing_ok=True)
    lists = _read_lists(config)
    queries = len(lists["query"])
    if config.Evaluate.query_sample is not None:
        lists["query"] = sample_of(lists["query"], config.Evaluate.query_sample, config.Train.seed)
    try:
        own = self_pairs_of(config, lists)
    except DatasetError as error:
        if error.code == "no-matches" and len(lists["query"]) < queries:
            error.fix = "Raise Evaluate.query_sample: other queries may have one."
        raise
    path = trained_model.resolve_weights(config)
    if not whole:
        return evaluate_shard.run_shard(config, lists, path, output, group)
    if launch.needs_workers(config.Global.device, None, group):
        return launch_processes(config, output)
    return _evaluate(config, output, group, lists, own, path, queries)


def _evaluate(
    config: Config,
    output: Path,
    group: ProcessGroup,
    lists: dict[str, ImageList],
    own: np.ndarray | None,
    path: Path,
    queries: int,
) -> dict[str, Any]:
    folder = output / "evaluate"
    if group.rank == 0 and not config.Evaluate.embedded:
        warn_of_self_matches(config, lists)
    evaluation = _measure(config, output, group, lists, own, path)
    heartbeat.stop()
    if group.rank:
        return {}
    if evaluation.collapsed:
        log.warning("Nearly all images have the same features: these weights distinguish nothing.")
    result = {"metrics": evaluation.main_metrics(), "weight_path": str(path)}
    if len(lists["query"]) < queries:
        result["sample"] = _sample(evaluation, queries)
    identity = _identity(config, path, output, evaluation.gallery.shape[1])
    if identity is not None:
        result["model"] = identity.as_json()
    try:
        result |= evaluation_report.write(evaluation, lists["query"], lists["gallery"], folder, str(path))
        if config.Evaluate.save_features:
            file = folder / FEATURES
            write_features(file, evaluation.gallery, evaluation.query, lists["gallery"], lists["query"])
            log.info("Features: %s", file)
            result["features"] = f"{folder.name}/{file.name}"
    except FeatError as error:  # such as a full disk: what was measured is not lost
        error.with_result(result)
        raise
    except Exception as error:
        raise EvaluationError(
            f"The metrics are done, and the report could not be made ({type(error).__name__}: {error}).",
            where=str(folder),
            fix="The metrics are in evaluate_result.json; please report this with evaluate.log.",
            code="report-failed",
        ).with_result(result) from error
    return result


def _measure(
    config: Config, output: Path, group: ProcessGroup, lists: dict[str, ImageList], own: np.ndarray | None, path: Path
) -> Evaluation:
    if config.Evaluate.embedded:
        return evaluate_shard.measure(config, lists, own, path, output, group)
    model = trained_model.load_model(config, path, group)
    evaluator = evaluator_of(config, lists, own, model.worker, output)
    return evaluator(extractor_of(config, model.extract), baseline=config.Evaluate.baseline)


def _sample(evaluation: Evaluation, queries: int) -> dict[str, Any]:
    """What a sample of the queries tells of all of them."""
    drawn = len(evaluation.query)
    found = intervals(evaluation.ranking, sorted(evaluation.metrics.recall), queries)
    log.info("A sample of %d of %d queries; the metrics of all lie, at a level of %g:", drawn, queries, LEVEL)
    for name, (low, high) in found.items():
        log.info("  %s from %.5f to %.5f", name, low, high)
    return {"queries": drawn, "of": queries, "level": LEVEL, "intervals": {n: list(i) for n, i in found.items()}}


def _identity(config: Config, path: Path, output: Path, dimension: int) -> ModelIdentity | None:
    """Of the inference directory that gives the features that were measured, by which galleries know the threshold.

    path: it, or a weight file that training exported beside itself: run.json has the SHA-256 of both. None: unknown.
    """
    folder = path
    try:
        if not path.is_dir():
            folder = path.parent / PREFIX
            recorded = read_result(output / run_record.NAME).get("outputs", {})
            places = (path.resolve(), (folder / f"{PREFIX}.pdiparams").resolve())
            names = {place.relative_to(output.resolve()).as_posix(): place for place in places}
            if run_record.sha256_of(names) != {name: recorded.get(name) for name in names}:
                return None
        return identity_of(folder, dimension, config.Evaluate.mirror)
    except (OSError, ValueError, AttributeError, FeatError) as error:  # such as weights of another folder
        log.debug("The inference model of these weights is unknown, so no gallery takes the threshold over: %s", error)
        return None


def _read_lists(config: Config) -> dict[str, ImageList]:
    """Read gallery and query. Raises DatasetError, also for missing files."""
    lists = read_lists(config, ("gallery", "query"))
    apart = config.Evaluate.shard or config.Evaluate.embedded  # most images are those of others, or need not be there
    for records in () if apart else lists.values():
        missing = [i for i, file in enumerate(records.files()) if not os.path.isfile(file_of(file))]  # noqa: PTH113 - for speed
        require_images(records, missing)
    return lists
