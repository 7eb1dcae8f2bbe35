"""What check_dataset checks. Every check adds findings; none stops at the first error.

A new check is a function `(DataSet, CheckSettings) -> Iterable[Finding]` and a name in CHECKS.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np

from paddlex_feat.checks import classes, duplicates, files
from paddlex_feat.checks.context import SAMPLED, CheckSettings, DataSet
from paddlex_feat.checks.image_info import inspect_all
from paddlex_feat.data.findings import Finding, cap_per_code, warnings_to_errors
from paddlex_feat.data.lists.image_list import LISTS, read_list

CHECKS: tuple[Callable[[DataSet, CheckSettings], Iterable[Finding]], ...] = (
    files.paths,
    files.images,
    files.damage,
    files.properties,
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
    duplicates.near_duplicates,
)


def check(root: Path, settings: CheckSettings) -> tuple[DataSet, list[Finding]]:
    """Read the three lists in `root`, decode their images and run every check."""
    data = DataSet(root)
    findings = cap_per_code(_findings(data, settings))
    return data, warnings_to_errors(findings) if settings.strict else findings


def _findings(data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    for name in LISTS:
        data.lists[name], found = read_list(data.root, name, settings.refuse_outside)
        yield from found
    data.image_info = inspect_all(_chosen(data, settings.decode), settings.workers)
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
