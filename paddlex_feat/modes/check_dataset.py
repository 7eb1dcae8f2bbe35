"""Mode check_dataset: is this data set fit for training and evaluation?"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from paddlex_feat.checks.context import CheckSettings, DataSet
from paddlex_feat.checks.runner import check
from paddlex_feat.config.schema import Config, SplitSection
from paddlex_feat.data.converters import labelme, labelme_images
from paddlex_feat.data.findings import SEVERITIES, Finding, cap_per_code, log_findings, warnings_to_errors
from paddlex_feat.data.lists import split, transaction
from paddlex_feat.data.lists.image_list import LISTS, find_root, require_lists
from paddlex_feat.errors import DatasetError
from paddlex_feat.reports import dataset_html, dataset_pictures
from paddlex_feat.runtime.cpu import cpu_count

log = logging.getLogger(__name__)


def run(config: Config, output: Path) -> dict[str, Any]:
    """Convert and split if asked, check everything, write report, samples and plots.

    Raises DatasetError, with the result attached, if there are errors.
    """
    wanted, before = config.CheckDataset, []
    if wanted.convert.enable:
        before += _convert(config)
    if wanted.split.enable:
        before += _split(config.Global.dataset_dir, wanted.split, wanted.outside == "refuse")
    root = find_root(config.Global.dataset_dir)
    log.info("Checking the data set in %s", root)
    data, findings = check(root, _settings(config))
    findings = cap_per_code(warnings_to_errors(before) if wanted.strict else before) + findings
    for name in LISTS:
        log.info("%s.txt: %d images, %d classes", name, len(data.lists[name]), len(set(data.lists[name].labels)))
    log_findings(findings)
    result = _write(config, output, root, data, findings)
    log.info("Report: %s", output / "check_dataset" / "report.html")
    counts = Counter({s: sum(f.count for f in findings if f.severity == s) for s in SEVERITIES})
    if counts["error"]:
        raise DatasetError(
            f"The data set did not pass: {counts['error']} errors, {counts['warning']} warnings.",
            where=str(root),
            fix="Correct what is listed above; all findings are in check_dataset_result.json.",
        ).with_result(result)
    log.info("Check dataset passed !")
    return result


def _settings(config: Config) -> CheckSettings:
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
    )


def _texts(paths: list[str], labels: list[int], parts: dict[str, list[int]]) -> dict[str, str]:
    return {name: "".join(f"{paths[i]} {labels[i]}\n" for i in parts[name]) for name in LISTS}


def _convert(config: Config) -> list[Finding]:
    """LabelMe annotations to the three lists."""
    root = labelme.find_root(config.Global.dataset_dir)
    converted = labelme.convert(root)
    try:
        if not converted.paths:
            raise DatasetError(
                "No annotation could be used.",
                where=str(root),
                fix="Correct what is listed above; each needs imagePath, and one true flag or shapes of one label.",
            )
        parts = split.random_split(converted.labels, labelme.PERCENTS, "image", config.CheckDataset.convert.seed)
        split.validate_split(parts, converted.labels, "CheckDataset.convert", "Annotate more images of each class")
    except DatasetError as error:
        log_findings(converted.findings)
        findings = [_plain(f) for f in cap_per_code(converted.findings)]
        raise error.with_result({"check_pass": False, "findings": findings}) from None
    labelme_images.write_pictures(root, converted.inside)
    transaction.replace_lists(root, _texts(converted.paths, converted.labels, parts))
    log.info(
        "Converted %d annotated images of %d classes: %s",
        len(converted.paths),
        len(set(converted.labels)),
        ", ".join(f"{len(parts[name])} {name}" for name in LISTS),
    )
    return converted.findings


def _split(dataset_dir: str, wanted: SplitSection, refuse_outside: bool) -> list[Finding]:
    """Draw the three lists anew from all their lines."""
    lists = require_lists(dataset_dir, refuse_outside=refuse_outside)
    pairs = dict.fromkeys(
        pair for records in lists.values() for pair in zip(records.paths, records.labels, strict=True)
    )
    paths, labels = [path for path, _ in pairs], [label for _, label in pairs]
    percents = (wanted.train_percent or 0, wanted.gallery_percent or 0, wanted.query_percent or 0)
    parts = split.random_split(labels, percents, wanted.by, wanted.seed)
    split.validate_split(parts, labels)
    transaction.replace_lists(lists["train"].root, _texts(paths, labels, parts))
    classes = {name: {labels[i] for i in parts[name]} for name in LISTS}
    told = ", ".join(f"{len(parts[name])} {name} ({len(classes[name])} classes)" for name in LISTS)
    twice = sum(map(len, lists.values())) - len(paths)
    if twice:
        log.info("%d lines stood twice and are kept once.", twice)
    log.info("Split %d images by %s with seed %d: %s", len(paths), wanted.by, wanted.seed, told)
    evaluated = set(lists["gallery"].labels) | set(lists["query"].labels)
    if wanted.by == "image" and not evaluated & set(lists["train"].labels):
        message = "The former train.txt shared no label with gallery.txt and query.txt, so theirs may be other classes."
        fix = "Make sure that a label means the same class in all three; the former lists are kept as .bak."
        return [Finding("split-mixes-labels", "warning", "train.txt", message, fix)]
    return []


def _plain(finding: Finding) -> dict[str, str]:
    """A finding as the result file holds it."""
    return {key: value for key, value in asdict(finding).items() if key not in ("images", "count")}


def _write(config: Config, output: Path, root: Path, data: DataSet, findings: list[Finding]) -> dict[str, Any]:
    """Samples, plots and the report below `<output>/check_dataset`; the content of the result file."""
    folder = output / "check_dataset"
    samples = dataset_pictures.write_samples(data.lists, folder / "demo_img")
    plots = [folder / "histogram.png", folder / "class_sizes.png"]
    dataset_pictures.write_histogram(data.lists, plots[0])
    dataset_pictures.write_class_sizes(data.lists, plots[1])
    pictures = {name: [folder / "demo_img" / s for s in files] for name, files in samples.items()}
    dataset_html.write_report(folder / "report.html", data, findings, root, plots, pictures)
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
        "dataset_type": "ShiTuRecDataset",
        "findings": [_plain(f) for f in findings],
    }
