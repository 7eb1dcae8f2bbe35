"""Evaluate.shard and Evaluate.embedded: features that several jobs compute, and one ranks."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.config.schema import Config
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.shard import Shard
from paddlex_feat.data.shard_files import ShardedJob
from paddlex_feat.evaluation import feature_shards
from paddlex_feat.evaluation.evaluator import Evaluation, files_of
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.inference.identity import identity_of
from paddlex_feat.modes import trained_model
from paddlex_feat.modes.build import evaluator_of, extractor_of, preprocess_of
from paddlex_feat.modes.parts import network_spec
from paddlex_feat.modes.worker import init_worker, launch_processes, threads_of
from paddlex_feat.runtime import heartbeat, launch
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle

log = logging.getLogger(__name__)


def run_shard(
    config: Config, lists: dict[str, ImageList], path: Path, output: Path, group: ProcessGroup
) -> dict[str, Any]:
    """Compute the features of the shard, unless they are there; the content of the result file.

    Args:
        config: with Evaluate.shard.
        lists: "gallery" and "query".
        path: weight file or inference directory.
        output: Global.output.
        group: processes that share the work; without any, one is started for each of several devices.

    Raises ShardError if the file is there, and is of other images or another model.
    """
    shard, job = Shard.parse(config.Evaluate.shard or ""), _job(config, lists, path)
    file = output / "evaluate" / shard.file(feature_shards.STEM)
    there = file.exists()
    if there:
        images = feature_shards.require_whole(file, job, shard)
        log.info("%s is there already, of this model and these images: nothing is computed.", file.name)
    elif launch.needs_workers(config.Global.device, None, group):
        return launch_processes(config, output)
    else:
        model = trained_model.load_model(config, path, group)
        evaluator = evaluator_of(config, lists, None, model.worker, output)
        features = evaluator.embed_shard(extractor_of(config, model.extract), shard)
        heartbeat.stop()
        if group.rank:
            return {}
        feature_shards.write(file, job, shard, features)
        images = len(features)
    log.info("Shard %s: %d of %d images; %s", shard, images, job.images, file)
    return {"shard": str(shard), "images": images, "features": f"evaluate/{file.name}", "skipped": there}


def measure(
    config: Config, lists: dict[str, ImageList], own: np.ndarray | None, path: Path, output: Path, group: ProcessGroup
) -> Evaluation:
    """The evaluation by the features that the jobs of Evaluate.embedded have computed.

    `own` are pairs (query, gallery) that are left out, int64 [P, 2]. Raises ShardError for shards that are missing,
    repeated, damaged, or of another job.
    """
    job, place = _job(config, lists, path), Path(config.Evaluate.embedded or "")
    prepare_paddle(threads_of(config, group))
    evaluator = evaluator_of(config, lists, own, init_worker(config, group), output)
    return evaluator.measure(feature_shards.read(place, job, evaluator.allocate))


def _job(config: Config, lists: dict[str, ImageList], path: Path) -> ShardedJob:
    return feature_shards.job_of(files_of(lists), _model(config, path), config.Evaluate.batch_size)


def _model(config: Config, path: Path) -> str:
    """What makes features those of this model: a digest of weights, network and pre-processing."""
    settings = config.Evaluate
    ways: dict[str, Any] = {"mirror": settings.mirror, "amp": settings.amp}
    if path.is_dir():
        ways["graph"] = identity_of(path, 1).as_json()
    else:
        beside = trained_model.config_beside(path)
        files = [path] if beside is None else [path, beside]
        ways |= {"files": sha256_file(*files), "preprocess": asdict(preprocess_of(config))}
        ways["network"] = {**asdict(network_spec(config)), "params": None, "head_params": None}
    return sha256(json.dumps(ways, sort_keys=True, default=str).encode()).hexdigest()
