"""Mode evaluate: recall@1, recall@5 and mAP of a weight file, exact over the whole gallery."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.dataset.records import require_lists
from paddlex_feat.modes.common import load_trained, preprocess_of
from paddlex_feat.runtime import cpu_count


def run(config: Config, output: Path) -> dict[str, Any]:
    """Evaluate; also writes the report below evaluate/."""
    lists = require_lists(config.Global.dataset_dir, ("gallery", "query"))
    trained = load_trained(config, "Evaluate.weight_path", config.Evaluate.weight_path)

    from paddlex_feat.inference.export import Exporter
    from paddlex_feat.retrieval import report
    from paddlex_feat.retrieval.evaluator import Evaluator

    evaluator = Evaluator(lists, config.Evaluate.batch_size, trained.device, config.Global.threads, cpu_count())
    with tempfile.TemporaryDirectory(prefix="paddlex_feat_") as temporary:
        folder = Path(temporary) / "inference"
        exporter = Exporter(trained.network, trained.config.Global.model, preprocess_of(trained.config))
        exporter.write(trained.network.state_dict(), folder)
        evaluation = evaluator(folder)

    return {
        "metrics": evaluation.headline(),
        "weight_path": str(trained.path),
        **report.write(evaluation, lists["query"], lists["gallery"], output / "evaluate", str(trained.path)),
    }
