"""Run all checks of a data set. None of them stops at the first error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from paddlex_feat.checks import CHECKS
from paddlex_feat.checks.context import MAX_SAMPLED, CheckSettings, DataSet, Features
from paddlex_feat.checks.image_info import ImageInfo
from paddlex_feat.checks.inspection import inspect_all
from paddlex_feat.checks.spec import CheckSpec
from paddlex_feat.data.findings import Finding, cap_per_code, warnings_to_errors
from paddlex_feat.data.lists.split import Division
from paddlex_feat.data.readers import LISTS, ReaderSpec, reader_of
from paddlex_feat.data.readers.find import read_lists
from paddlex_feat.data.readers.remote import Fetch

Inspect = Callable[[list[str]], dict[str, ImageInfo]]


def check(
    root: Path,
    settings: CheckSettings,
    reader: ReaderSpec | None = None,
    division: Division | None = None,
    embed: Callable[[list[str]], Features | None] | None = None,
    fetch: Fetch | None = None,
    inspect: Inspect | None = None,
) -> tuple[DataSet, list[Finding]]:
    """Read the lists of a data set, decode its images and run every check.

    Args:
        root: the data set's folder, as `find_root` gives it.
        settings: what is checked.
        reader: of the data set's format; None: the one that recognizes the folder.
        division: of a data set without gallery and query; None: `Division()`.
        embed: readable images -> their features, for the checks that need some; None: they find nothing.
        fetch: downloads images that are addresses; None: they are errors.
        inspect: files -> what is known of each; None: they are opened here.

    Returns:
        The data set, and its findings: at most MAX_PER_CODE of a kind in full.
    """
    data = DataSet(root)
    findings = cap_per_code(_findings(data, reader or reader_of(root), settings, division, embed, fetch, inspect))
    return data, warnings_to_errors(findings) if settings.strict else findings


def _findings(
    data: DataSet,
    reader: ReaderSpec,
    settings: CheckSettings,
    division: Division | None,
    embed: Callable[[list[str]], Features | None] | None,
    fetch: Fetch | None,
    inspect: Inspect | None,
) -> Iterator[Finding]:
    yield from _read(data, reader, settings, division, fetch)
    files = _chosen(data, settings.decode)
    data.image_info = inspect(files) if inspect else inspect_all(files, settings.workers)
    if embed is not None:
        data.features = embed([file for file, info in data.image_info.items() if not info.error])
    for spec in CHECKS:
        yield from _declared(spec, data, settings)


def chosen_files(
    root: Path, settings: CheckSettings, reader: ReaderSpec, division: Division, fetch: Fetch | None
) -> list[str]:
    """The images that `check` inspects, in its order."""
    data = DataSet(root)
    _read(data, reader, settings, division, fetch)
    return _chosen(data, settings.decode)


def _read(
    data: DataSet, reader: ReaderSpec, settings: CheckSettings, division: Division | None, fetch: Fetch | None
) -> list[Finding]:
    data.lists, found, _ = read_lists(data.root, reader, LISTS, settings.refuse_outside, division, fetch)
    data.lists["query"].leave_one_out |= settings.exclude_self
    return found


def _declared(spec: CheckSpec, data: DataSet, settings: CheckSettings) -> Iterator[Finding]:
    """The findings of one check. Raises ValueError for a kind that its spec does not list."""
    codes = {kind.code for kind in spec.findings}
    for finding in spec.run(data, settings):
        if finding.code not in codes:
            raise ValueError(f"The check {spec.name!r} does not list its finding {finding.code!r}")
        yield finding


def _chosen(data: DataSet, decode: str) -> list[str]:
    """The files that are decoded: every one once, or MAX_SAMPLED of each list, or none."""
    chosen: dict[str, None] = {}
    for records in data.lists.values() if decode != "none" else []:
        files = records.files()
        if decode == "sample" and len(files) > MAX_SAMPLED:
            picked = np.random.default_rng(0).choice(len(files), MAX_SAMPLED, replace=False)
            files = [files[i] for i in sorted(picked)]
        chosen |= dict.fromkeys(files)
    return list(chosen)
