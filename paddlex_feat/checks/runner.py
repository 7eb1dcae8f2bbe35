"""What check_dataset checks. Every check adds findings; none stops at the first fault.

A new check is a function `(DataSet, Settings) -> Iterable[Finding]` and a name in CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from paddlex_feat.checks import classes, duplicates, files
from paddlex_feat.checks.context import SAMPLED, DataSet, Settings
from paddlex_feat.checks.image_facts import inspect_all
from paddlex_feat.data.findings import Finding, first_of_each, stricter
from paddlex_feat.data.lists.image_list import LISTS, read_list

CHECKS: tuple[Callable[[DataSet, Settings], Iterable[Finding]], ...] = (
    files.paths,
    files.images,
    files.damage,
    files.traits,
    files.information,
    files.sizes,
    classes.classifier,
    classes.sampler,
    classes.distribution,
    classes.matches,
    duplicates.repeated_lines,
    duplicates.contradictory_labels,
    duplicates.identical,
    duplicates.query_in_gallery,
    duplicates.leaks,
    duplicates.look_alikes,
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
