"""Mode evaluate: recall@1, recall@5 and mAP of a weight file, exact over the whole gallery."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.dataset.records import require_lists
from paddlex_feat.modes.common import load_trained, preprocess_of
from paddlex_feat.runtime import cpu_count

log = logging.getLogger(__name__)


def run(config: Config, output: Path) -> dict[str, Any]:
    """Evaluate; also writes evaluate/retrieval.png."""
    lists = require_lists(config.Global.dataset_dir, ("gallery", "query"))
    trained = load_trained(config, "Evaluate.weight_path", config.Evaluate.weight_path)

    from paddlex_feat.inference.export import Exporter
    from paddlex_feat.retrieval.evaluator import Evaluator
    from paddlex_feat.retrieval.picture import draw_retrieval

    evaluator = Evaluator(lists, config.Evaluate.batch_size, trained.device, config.Global.threads, cpu_count())
    with tempfile.TemporaryDirectory(prefix="paddlex_feat_") as temporary:
        folder = Path(temporary) / "inference"
        exporter = Exporter(trained.network, trained.config.Global.model, preprocess_of(trained.config))
        exporter.write(trained.network.state_dict(), folder)
        evaluation = evaluator(folder)

    counts = evaluation.metrics
    if counts.unmatched_queries:
        log.warning("%d queries have no gallery image of their label and are left out.", counts.unmatched_queries)
    metrics = evaluation.headline()
    log.info(
        "%s  (%d queries, %d gallery images)",
        ", ".join(f"{name}: {value:.5f}" for name, value in metrics.items()),
        counts.matched_queries,
        len(lists["gallery"]),
    )
    picture = output / "evaluate" / "retrieval.png"
    draw_retrieval(evaluation, lists["query"], lists["gallery"], picture)
    log.info("Queries with their nearest gallery images: %s", picture)
    return {
        "metrics": metrics,
        "weight_path": str(trained.path),
        "queries": counts.matched_queries,
        "unmatched_queries": counts.unmatched_queries,
        "gallery": len(lists["gallery"]),
        "retrieval": "evaluate/retrieval.png",
    }
