"""Report at the end of a training which weights best_model holds, and measure them on gallery and query."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.evaluation.embed import Extractor
from paddlex_feat.inference.export.exporter import Exporter
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.inference.network import NetworkExtractor
from paddlex_feat.models import weights
from paddlex_feat.modes.build import evaluator_of, preprocess_of
from paddlex_feat.modes.train_data import Data
from paddlex_feat.modes.worker import Worker
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.training.checkpoint import Progress
from paddlex_feat.training.delivery import delivery, describe_delivery

log = logging.getLogger(__name__)


def report_delivery(
    config: Config, progress: Progress, best: Path, exporter: Exporter, data: Data, worker: Worker
) -> dict[str, Any]:
    """Log what the finished run delivers and return it for train_result.json; rank 0 alone calls it.

    Weights that were chosen on held-out images are measured here once, on gallery and query, after everything is
    chosen: "validation" and "test" of the result are the two figures.

    Args:
        config: the run's configuration.
        progress: at the end of the run.
        best: best_model.pdparams, with its inference directory beside it.
        exporter: of the run; on a GPU its network computes the features.
        data: the data of the run.
        worker: this process.
    """
    found = delivery(progress)
    if found.get("delivered") in ("start", "adapted"):
        log.warning("No epoch was better than the start: best_model holds %s.", describe_delivery(progress))
    log.info("Best recall1 %.5f in epoch %d: %s", progress.best, progress.best_epoch, best)
    if data.held_out is None:
        return found
    alone = dataclasses.replace(worker, group=ProcessGroup())  # the other processes have ended
    evaluator = evaluator_of(config, data.lists, data.own, alone, best.parent.parent)
    test = evaluator(_extractor(config, best, exporter, worker)).main_metrics()
    text = ", ".join(f"{name}: {value:.5f}" for name, value in test.items())
    log.info("[Test][Epoch %d]%s (gallery and query, which took no part in choosing)", progress.best_epoch, text)
    return {**found, "validation": {"recall1": progress.best}, "test": test}


def _extractor(config: Config, best: Path, exporter: Exporter, worker: Worker) -> Extractor:
    if worker.device == "cpu":
        return FeatureExtractor(best.parent / "inference", worker.device, worker.threads)
    import paddle

    extract = NetworkExtractor(exporter.network, preprocess_of(config))
    extract.load({name: paddle.to_tensor(array) for name, array in weights.read(best).items()})
    return extract
