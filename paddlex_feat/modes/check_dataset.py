"""Mode check_dataset: is this data set fit for training and evaluation?"""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.dataset.check import Settings, check
from paddlex_feat.dataset.records import LISTS, find_root
from paddlex_feat.dataset.report import log_findings, write_histogram, write_samples
from paddlex_feat.errors import DatasetError
from paddlex_feat.runtime import cpu_count

log = logging.getLogger(__name__)


def run(config: Config, output: Path) -> dict[str, Any]:
    """Check everything, write samples and histogram; raise DatasetError if there are errors."""
    train = config.Train
    settings = Settings(
        batch_size=train.batch_size,
        samples_per_class=train.samples_per_class,
        num_classes=train.num_classes if isinstance(train.num_classes, int) else None,
        workers=train.num_workers or cpu_count(),
    )
    root = find_root(config.Global.dataset_dir)
    log.info("Checking the data set in %s", root)
    lists, findings = check(root, settings)
    for name in LISTS:
        log.info("%s.txt: %d images, %d classes", name, len(lists[name]), len(set(lists[name].labels)))
    log_findings(findings)

    folder = output / "check_dataset"
    samples = write_samples(lists, folder / "demo_img")
    write_histogram(lists, folder / "histogram.png")
    errors = sum(f.severity == "error" for f in findings)
    attributes: dict[str, Any] = {}
    for name in LISTS:
        attributes[f"{name}_samples"] = len(lists[name])
        attributes[f"{name}_sample_paths"] = [f"check_dataset/demo_img/{s}" for s in samples[name]]
    result = {
        "check_pass": not errors,
        "attributes": attributes,
        "analysis": {"histogram": "check_dataset/histogram.png"},
        "dataset_path": config.Global.dataset_dir,
        "show_type": "image",
        "dataset_type": "ShiTuRecDataset",
        "findings": [asdict(f) for f in findings],
    }
    if errors:
        raise DatasetError(
            f"The data set did not pass: {errors} error{'s' if errors > 1 else ''}, {len(findings) - errors} warnings.",
            where=str(root),
            fix="Correct what is listed above; all findings are in check_dataset_result.json.",
        ).with_result(result)
    log.info("Check dataset passed !")
    return result
