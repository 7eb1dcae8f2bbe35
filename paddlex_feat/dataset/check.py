"""What check_dataset checks. Every check adds findings; none stops at the first fault.

A new check is a function `(DataSet, Settings) -> Iterable[Finding]` and a name in CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from paddlex_feat.dataset import check_classes, check_copies, check_files
from paddlex_feat.dataset.findings import Finding, first_of_each, stricter
from paddlex_feat.dataset.images import inspect_all
from paddlex_feat.dataset.records import LISTS, read_list
from paddlex_feat.dataset.subject import SAMPLED, DataSet, Settings

CHECKS: tuple[Callable[[DataSet, Settings], Iterable[Finding]], ...] = (
    check_files.paths,
    check_files.images,
    check_files.damage,
    check_files.traits,
    check_files.information,
    check_files.sizes,
    check_classes.classifier,
    check_classes.sampler,
    check_classes.distribution,
    check_classes.matches,
    check_copies.repeated_lines,
    check_copies.contradictory_labels,
    check_copies.identical,
    check_copies.query_in_gallery,
    check_copies.leaks,
    check_copies.look_alikes,
)


def check(root: Path, settings: Settings) -> tuple[DataSet, list[Finding]]:
    """Read the three lists in `root`, decode their images and run every check."""
    data = DataSet(root)
    findings = first_of_each(_findings(data, settings))
    return data, stricter(findings) if settings.strict else findings


def _findings(data: DataSet, settings: Settings) -> Iterator[Finding]:
    for name in LISTS:
        data.lists[name], faults = read_list(data.root, name, settings.refuse_outside)
        yield from faults
    data.facts = inspect_all(_chosen(data, settings.decode), settings.workers)
    for run in CHECKS:
        yield from run(data, settings)


def _chosen(data: DataSet, decode: str) -> list[str]:
    """The files that are decoded: every one once, or SAMPLED of each list, or none."""
    chosen: dict[str, None] = {}
    for records in data.lists.values() if decode != "none" else []:
        files = records.files()
        if decode == "sample" and len(files) > SAMPLED:
            picked = np.random.default_rng(0).choice(len(files), SAMPLED, replace=False)
            files = [files[i] for i in sorted(picked)]
        chosen |= dict.fromkeys(files)
    return list(chosen)
