"""The report of an evaluation as one HTML page that needs no other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation.analysis import MATCHES
from paddlex_feat.evaluation.summary import Summary
from paddlex_feat.reports.examples import NEIGHBOURS, Examples
from paddlex_feat.reports.html import write_page

MAX_CLASSES, MAX_CONFUSED, MAX_UNMATCHED = 12, 12, 50  # shown of each


def write_report(
    path: Path,
    summary: Summary,
    examples: Examples,
    query: ImageList,
    worst: Sequence[int],
    chosen: Sequence[int],
    plots: Sequence[Path],
    weights: str = "",
) -> None:
    """Write the page.

    Args:
        path: file to write.
        summary: figures of the evaluation.
        examples: queries and gallery images to show.
        query: the query list.
        worst: query indices, shown with their first match.
        chosen: other query indices.
        plots: PNG files that the page contains.
        weights: the evaluated weights or directory.

    Raises:
        OutputError: If the file cannot be written.
    """
    write_page(
        path,
        "evaluation.html",
        summary=summary,
        examples=examples,
        query=query,
        worst=worst,
        chosen=chosen,
        plot_files=plots,
        weights=weights,
        failed_classes=[c for c in summary.classes if c.failure is not None],
        neighbours=NEIGHBOURS,
        max_matches=MATCHES,
        max_classes=MAX_CLASSES,
        max_confused=MAX_CONFUSED,
        max_unmatched=MAX_UNMATCHED,
    )
