"""CheckDataset.features: the features that tell likely wrong labels, and who computes them."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

from paddlex_feat.checks.context import Features
from paddlex_feat.checks.feature_cache import cached
from paddlex_feat.config.base import STARTER_MODEL
from paddlex_feat.config.schema import Config
from paddlex_feat.data.images.source import path_of, plain_of
from paddlex_feat.errors import DependencyError
from paddlex_feat.evaluation.embed import embed
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.inference.model_zoo import NAMES, official_model
from paddlex_feat.inference.predictor import given_model
from paddlex_feat.modes.worker import MAX_DECODING_THREADS, Worker, init_worker, threads_of
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.runtime.device import first_device
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle

log = logging.getLogger(__name__)
AUTO, OFF = "auto", "off"


def join(config: Config, group: ProcessGroup) -> Worker | None:
    """This process's place among those that share the features; None: it is alone."""
    if group.size == 1:
        return None
    prepare_paddle(threads_of(config, group))
    return init_worker(config, group)


def help_rank_0(config: Config, group: ProcessGroup) -> None:
    """On another rank: wait for rank 0's `features_of`, and compute a share of its features."""
    worker = join(config, group)
    files = [path_of(plain) for plain in json.loads(group.broadcast_bytes(b""))]
    if files:
        features_of(config, files, worker)


def features_of(config: Config, files: list[str], worker: Worker | None = None) -> Features | None:
    """Features of readable images; None if there is no model for CheckDataset.features=auto, which is said.

    worker: this process among others that share the work. On rank 0 this has to be called, even without files; the
    others wait for it.

    Raises:
        WeightsError: the model that is named cannot be used.
        DependencyError: its engine, or the starter that is named, is not installed.
    """
    wanted = config.CheckDataset.features
    folder = (
        _automatic(config) if wanted == AUTO else official_model(wanted) if wanted in NAMES else given_model(wanted)
    )
    if worker and not worker.group.rank:
        listed = [] if folder is None else [plain_of(file) for file in files]
        worker.group.broadcast_bytes(json.dumps(listed).encode("ascii"))
    if folder is None or not files:
        return None
    from paddlex_feat.inference.extractor import FeatureExtractor

    if worker is None:
        device, threads = first_device(config.Global.device), config.Global.threads
    else:
        device, threads = worker.device, worker.threads
    extract = FeatureExtractor(folder, device, threads, unit=True, engine=AUTO)
    log.info("Features of %d images by %s (engine %s)", len(files), folder, extract.engine.name)
    decoding = worker.decoding_threads if worker else min(cpu_count(), MAX_DECODING_THREADS)
    with cached(extract, _fingerprint(folder)) as extractor:
        rows = embed(extractor, files, config.Evaluate.batch_size, decoding, worker.group if worker else None)
    return Features(rows, {file: row for row, file in enumerate(files)}, extract.info.name)


def _automatic(config: Config) -> Path | None:
    """The starter, which has never seen these labels; else the model of Predict.model_dir."""
    try:
        return official_model(STARTER_MODEL)
    except DependencyError as error:
        own = config.Predict.model_dir
        if own and Path(own).is_dir():
            return Path(own)
        log.warning("CheckDataset.features=auto finds no model, so wrong labels are not looked for. %s", error.fix)
        return None


def _fingerprint(folder: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.iterdir() if path.is_file()):
        digest.update(f"{file.name} {sha256_file(file)}\n".encode())
    return digest.hexdigest()[:16]
