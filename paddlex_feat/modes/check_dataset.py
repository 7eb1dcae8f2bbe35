"""Mode check_dataset: is this data set fit for training and evaluation?"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from paddlex_feat.checks.context import CheckSettings, DataSet
from paddlex_feat.checks.inspection_shards import STEM, inspect_shard, inspected
from paddlex_feat.checks.runner import check, chosen_files
from paddlex_feat.checks.suspects import rank_suspects
from paddlex_feat.config.schema import Config
from paddlex_feat.data.findings import SEVERITIES, Finding, cap_per_code, log_findings, warnings_to_errors
from paddlex_feat.data.readers import LISTS, ReaderSpec, find_root, reader_of
from paddlex_feat.data.shard import Shard
from paddlex_feat.errors import DatasetError
from paddlex_feat.hub.fetch import image_fetcher
from paddlex_feat.modes import rewrite_dataset
from paddlex_feat.modes.check_features import OFF, features_of, help_rank_0, join
from paddlex_feat.modes.data import division_of
from paddlex_feat.modes.train_recipe import apply_auto_recipe
from paddlex_feat.modes.worker import launch_processes
from paddlex_feat.reports import dataset_html, dataset_pictures, suspects_table
from paddlex_feat.runtime import launch
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.runtime.distributed import ProcessGroup

log = logging.getLogger(__name__)


def run(config: Config, output: Path, group: ProcessGroup) -> dict[str, Any]:
    """Convert and split if asked, check everything, write report, samples and plots.

    With several devices, they share CheckDataset.features, and rank 0 does all else.

    Raises:
        ConfigError: there is no converter of this name.
        DatasetError: the data set has errors; the result is attached.
    """
    wanted = config.CheckDataset
    embeds = wanted.features != OFF and wanted.decode != "none"
    if embeds and launch.needs_workers(config.Global.device, None, group):
        return launch_processes(config, output)
    if group.rank:
        help_rank_0(config, group)
        return {}
    config, before, alone = rewrite_dataset.rewrite(config)
    form = config.Global.dataset_format
    root = find_root(config.Global.dataset_dir, form=form)
    reader = reader_of(root, form=form)
    log.info("Checking the data set in %s", root)
    fetch, division = image_fetcher(config.CheckDataset.urls), division_of(wanted.split)
    if wanted.shard is not None:
        files = chosen_files(root, _settings(config, alone), reader, division, fetch)
        return _inspect_shard(Shard.parse(wanted.shard), files, config, output)
    inspect = partial(inspected, Path(wanted.inspected)) if wanted.inspected else None
    embed = partial(features_of, config, worker=join(config, group)) if embeds else None
    if wanted.features != OFF and not embeds:
        log.warning("CheckDataset.features has no effect: with CheckDataset.decode=none no image is opened.")
    settings = _settings(_as_trained(config), alone)
    data, findings = check(root, settings, reader, division, embed, fetch, inspect)
    findings = cap_per_code(warnings_to_errors(before) if wanted.strict else before) + findings
    for records in data.lists.values():
        log.info("%s: %d images, %d classes", records.title, len(records), len(records.class_sizes()))
    log_findings(findings)
    result = _write(config, output, data, findings, reader)
    log.info("Report: %s", output / "check_dataset" / "report.html")
    counts = Counter({s: sum(f.count for f in findings if f.severity == s) for s in SEVERITIES})
    if counts["error"]:
        raise DatasetError(
            f"The data set did not pass: {counts['error']} errors, {counts['warning']} warnings.",
            where=str(root),
            fix="Correct what is listed above; all findings are in check_dataset_result.json.",
            code="check-failed",
        ).with_result(result)
    log.info("Check dataset passed !")
    return result


def _inspect_shard(shard: Shard, files: list[str], config: Config, output: Path) -> dict[str, Any]:
    """Open the shard's images; the content of the result file."""
    found, there = inspect_shard(output / "check_dataset", shard, files, config.Train.num_workers or cpu_count())
    faults = sum(bool(info.error) for info in found.values())
    log.info("Shard %s: %d of %d images, %d cannot be used", shard, len(found), len(files), faults)
    file = f"check_dataset/{shard.file(STEM)}"
    return {"shard": str(shard), "images": len(found), "unusable": faults, "file": file, "skipped": there}


def _as_trained(config: Config) -> Config:
    """The configuration with what Train.recipe=auto would choose: batches and sizes are checked as they are trained."""
    train = config.Train.model_copy(update={"validation": "queries"})  # whatever a split would find too small
    for candidate in (config, config.model_copy(update={"Train": train})):
        with contextlib.suppress(DatasetError):
            return apply_auto_recipe(candidate, None)
    return config  # lists that cannot be read: the check finds and reports them


def _settings(config: Config, leave_one_out: bool) -> CheckSettings:
    train = config.Train
    return CheckSettings(
        batch_size=train.batch_size,
        samples_per_class=train.samples_per_class,
        num_classes=train.num_classes if isinstance(train.num_classes, int) else None,
        workers=train.num_workers or cpu_count(),
        input_size=train.input_size,
        decode=config.CheckDataset.decode,
        strict=config.CheckDataset.strict,
        refuse_outside=config.CheckDataset.outside == "refuse",
        pixels=config.CheckDataset.pixels,
        exclude_self=config.Evaluate.exclude_self or leave_one_out,
    )


def _write(config: Config, output: Path, data: DataSet, findings: list[Finding], reader: ReaderSpec) -> dict[str, Any]:
    """Samples, plots and the report below `<output>/check_dataset`; the content of the result file."""
    folder = output / "check_dataset"
    samples = dataset_pictures.write_samples(data.lists, folder / "demo_img")
    plots = [folder / "histogram.png", folder / "class_sizes.png"]
    dataset_pictures.write_histogram(data.lists, plots[0])
    dataset_pictures.write_class_sizes(data.lists, plots[1])
    pictures = {name: [folder / "demo_img" / s for s in files] for name, files in samples.items()}
    ranked = rank_suspects(data)
    marked = suspects_table.marked_text(ranked, findings)
    dataset_html.write_report(folder / "report.html", data, findings, plots, pictures, marked)
    extra: dict[str, Any] = {}
    if ranked:
        suspects_table.write_suspects(folder / suspects_table.NAME, ranked)
        log.info("All images by how likely their label is wrong: %s", folder / suspects_table.NAME)
        extra["suspects"] = f"{folder.name}/{suspects_table.NAME}"
    attributes: dict[str, Any] = {}
    for name in LISTS:
        attributes[f"{name}_samples"] = len(data.lists[name])
        attributes[f"{name}_sample_paths"] = [f"check_dataset/demo_img/{s}" for s in samples[name]]
    return {
        "check_pass": not any(f.severity == "error" for f in findings),
        "attributes": attributes,
        "analysis": {"histogram": "check_dataset/histogram.png"},
        "dataset_path": config.Global.dataset_dir,
        "show_type": "image",
        "dataset_type": reader.name,
        "findings": [f.as_result() for f in findings],
        **extra,
    }
