"""The report of check_dataset as one HTML page that needs no other file."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from paddlex_feat.checks.context import DataSet
from paddlex_feat.data.findings import Finding, grouped
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.reports.html import write_page

MAX_SHOWN = 50  # findings of a kind
MAX_ILLUSTRATED = 12  # findings of a kind with thumbnails
MAX_SUSPECTS = 100  # findings of a kind that is looked through, with thumbnails beside each


def write_report(
    path: Path,
    data: DataSet,
    findings: list[Finding],
    plots: list[Path],
    samples: dict[str, list[Path]],
    marked: str = "",
) -> None:
    """Write the page.

    Args:
        path: file to write.
        data: the checked lists.
        findings: of all checks.
        plots: PNG files that the page contains.
        samples: labelled sample images of each list.
        marked: the suspects as a table for `CheckDataset.suspects`; "" for none.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_page(
        path,
        "dataset.html",
        passed=not any(f.severity == "error" for f in findings),
        root=data.root,
        lists=[(records.title, _numbers(records)) for records in data.lists.values()],
        plot_files=plots,
        groups=list(grouped(findings).items()),
        samples=[(data.lists[name].title, files) for name, files in samples.items()],
        max_shown=MAX_SHOWN,
        max_illustrated=MAX_ILLUSTRATED,
        max_suspects=MAX_SUSPECTS,
        marked=marked,
    )


def _numbers(records: ImageList) -> tuple[int, ...]:
    """Images, classes, and the sizes of the smallest, the median and the largest class."""
    sizes = np.unique(records.labels, return_counts=True)[1] if len(records) else np.zeros(1, int)
    return len(records), len(sizes) if len(records) else 0, int(sizes.min()), int(np.median(sizes)), int(sizes.max())
