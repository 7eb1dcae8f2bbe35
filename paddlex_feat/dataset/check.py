"""What check_dataset checks. Every check adds findings; none stops at the first fault.

A new check is a function `(ImageLists, Settings) -> list[Finding]` and a line in CHECKS.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from paddlex_feat.dataset.records import LISTS, Finding, ImageList, read_list
from paddlex_feat.errors import ImageError
from paddlex_feat.pipeline.decode import read_rgb
from paddlex_feat.pipeline.sampler import pk_fault
from paddlex_feat.progress import bar

ImageLists = dict[str, ImageList]


@dataclass(frozen=True)
class Settings:
    """The training settings that a data set must fit, and how many threads decode."""

    batch_size: int
    samples_per_class: int | None
    num_classes: int | None  # None: taken from train.txt
    workers: int


def decode_fault(path: str) -> tuple[str, str] | None:
    """(code, message) if the file is no readable image."""
    if not Path(path).exists():
        return "image-missing", "The file does not exist."
    if Path(path).is_dir():
        return "image-is-folder", "The path is a folder, not an image."
    try:
        read_rgb(path)
    except ImageError as error:
        return "image-undecodable", error.what
    return None


def check_images(lists: ImageLists, settings: Settings) -> list[Finding]:
    """Every image of every list exists and decodes; a file on several lines is decoded once."""
    lines: dict[str, list[str]] = {}
    for records in lists.values():
        for i, path in enumerate(records.files()):
            lines.setdefault(path, []).append(records.where(i))
    findings = []
    with ThreadPoolExecutor(settings.workers) as pool, bar(len(lines), "decoding", "images") as progress:
        for path, fault in zip(lines, pool.map(decode_fault, lines), strict=True):
            progress.update()
            if fault:
                fix = "Replace the file or take its lines off the lists."
                findings += [Finding(fault[0], "error", w, f"{path}: {fault[1]}", fix) for w in lines[path]]
    return findings


def check_classes(lists: ImageLists, settings: Settings) -> list[Finding]:
    """The classes of train.txt fit the classifier and the sampler."""
    train = lists["train"]
    if not train:
        return []
    count, findings = len(set(train.labels)), []
    if count == 1:
        message, fix = "All images of train.txt have one label: there is nothing to tell apart.", "Add other classes."
        findings.append(Finding("train-one-class", "error", "train.txt", message, fix))
    if settings.num_classes is not None and settings.num_classes < count:
        findings.append(
            Finding(
                "num-classes-too-small",
                "error",
                "train.txt",
                f"train.txt has {count} classes, Train.num_classes is {settings.num_classes}.",
                f"Use -o Train.num_classes=auto, or {count}.",
            )
        )
    k = settings.samples_per_class
    fault = pk_fault(count, settings.batch_size, k) if k else None
    if fault:
        findings.append(Finding("sampler-batch", "error", "train.txt", *fault))
    sizes = Counter(train.labels)
    small = [label for label, size in sizes.items() if k and size < k]
    if small:
        message = f"{len(small)} of {count} classes have fewer than {k} images; batches repeat theirs."
        fix = "Add images, or lower Train.samples_per_class and Train.batch_size."
        findings.append(Finding("class-small", "warning", "train.txt", message, fix))
    return findings


def check_matches(lists: ImageLists, settings: Settings) -> list[Finding]:
    """Queries have a gallery image of their label."""
    query, gallery = lists["query"], set(lists["gallery"].labels)
    if not query or not gallery:
        return []
    unmatched = np.flatnonzero([label not in gallery for label in query.labels]).tolist()
    if len(unmatched) == len(query):
        message = "No query has a gallery image of its label: there is nothing to retrieve."
        fix = "Give gallery.txt and query.txt the same labels."
        return [Finding("query-none-matched", "error", "query.txt", message, fix)]
    fix = "Add a gallery image of that label; evaluation leaves such queries out and counts them."
    return [
        Finding(
            "query-unmatched", "warning", query.where(i), f"Label {query.labels[i]} is not in gallery.txt.", fix
        )
        for i in unmatched
    ]


CHECKS: tuple[Callable[[ImageLists, Settings], list[Finding]], ...] = (check_images, check_classes, check_matches)


def check(root: Path, settings: Settings) -> tuple[ImageLists, list[Finding]]:
    """Read the three lists in `root` and run every check."""
    lists: ImageLists = {}
    findings: list[Finding] = []
    for name in LISTS:
        lists[name], faults = read_list(root, name)
        findings += faults
    for run in CHECKS:
        findings += run(lists, settings)
    return lists, findings
