"""The files of mode evaluate: tables, pictures and a page; and the summary in its log."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation.baseline import figures
from paddlex_feat.evaluation.evaluator import Evaluation
from paddlex_feat.evaluation.summary import Summary, as_result, summarise
from paddlex_feat.reports.csv_tables import write_classes, write_confusions, write_queries
from paddlex_feat.reports.evaluation_html import write_report
from paddlex_feat.reports.examples import Examples
from paddlex_feat.reports.plots import draw_similarities, draw_thresholds
from paddlex_feat.reports.query_sheets import choose_queries, choose_worst, draw_queries

log = logging.getLogger(__name__)

FILES = (
    "report.html",
    "queries.csv",
    "classes.csv",
    "confusions.csv",
    "retrieval.png",
    "worst.png",
    "similarities.png",
    "threshold.png",
)
QUERIES = 10  # in each picture
_MAX_WARNED = 3  # unmatched queries named in the log


def write(
    evaluation: Evaluation, query: ImageList, gallery: ImageList, folder: Path, weights: str = ""
) -> dict[str, Any]:
    """Write all files into `folder`, log the summary, and return the other figures for evaluate_result.json.

    Args:
        evaluation: the evaluation of the two lists.
        query: the query list.
        gallery: the gallery list.
        folder: where the files are written.
        weights: the evaluated weights or directory, for the page.

    Returns:
        Plain values; names of files are relative to the parent of `folder`.
    """
    summary = summarise(evaluation, query, gallery)
    examples = Examples(evaluation, query, gallery)
    write_queries(evaluation.ranking, query, gallery, folder / "queries.csv")
    write_classes(summary, query, folder / "classes.csv")
    write_confusions(summary, query, folder / "confusions.csv")

    first = evaluation.ranking.first_match
    chosen, worst = choose_queries(first, query.labels, QUERIES), choose_worst(first, query.labels, QUERIES)
    main = evaluation.main_metrics()
    title = (
        f"recall@1 {main['recall1']:.3f}   recall@5 {main['recall5']:.3f}   mAP {main['mAP']:.3f}   "
        f"({summary.metrics.matched_queries} queries, {len(gallery)} gallery images)"
    )
    draw_queries(examples, chosen, title, folder / "retrieval.png")
    title = "Queries whose first match has the largest rank, and that match" if worst else "No query failed"
    draw_queries(examples, worst, title, folder / "worst.png", first_match=True)
    plots = [folder / "similarities.png", folder / "threshold.png"]
    draw_similarities(summary.pairs, summary.suggested, plots[0])
    draw_thresholds(summary.curve, summary.suggested, plots[1])
    page = folder / "report.html"
    write_report(page, summary, examples, query, worst, chosen, plots, weights)

    _log(summary, main, query, page)
    return {
        **as_result(summary, query),
        "files": [f"{folder.name}/{name}" for name in FILES],
        "retrieval": f"{folder.name}/retrieval.png",
    }


def _log(summary: Summary, main: dict[str, float], query: ImageList, page: Path) -> None:
    counts, (low, high) = summary.metrics, summary.interval
    if summary.unmatched:
        named = ", ".join(f"{query.where(q)} {query.paths[q]}" for q in summary.unmatched[:_MAX_WARNED])
        log.warning(
            "Queries without a gallery image of their label, left out: %d, the first %s%s",
            counts.unmatched_queries,
            named,
            ", …" if len(summary.unmatched) > _MAX_WARNED else "",
        )
    log.info(
        "%s  (%d queries, %d gallery images)",
        figures(main),
        counts.matched_queries,
        summary.gallery,
    )
    log.info("95 %% interval of recall1: %.3f to %.3f, by bootstrap over the queries", low, high)
    if summary.baseline is not None:
        log.info("Baseline without a network (%s): %s", summary.baseline_name, figures(summary.baseline.main()))
    if summary.pixels_better_in:
        log.warning("Raw pixels are better than this network: %s.", ", ".join(summary.pixels_better_in))
    log.info("mAP@R: %.5f, MRR: %.5f", counts.mean_ap_at_r, counts.mrr)
    worst = [
        f"{query.name_of(c.label)} ({c.recall1:.3f} of {c.queries} queries)"
        for c in summary.classes[:3]
        if c.recall1 < 1
    ]
    if worst:
        log.info("Classes with the lowest recall1: %s", ", ".join(worst))
    if summary.confused:
        most = summary.confused[0]
        names = query.name_of(most.label), query.name_of(most.taken_for)
        log.info("Most confused: class %s, taken for %s by %d queries", *names, most.count)
    best = summary.suggested
    if best.threshold is None:
        log.info("No threshold is suggested: the nearest gallery image of every query is of another class")
    else:
        log.info(
            "Suggested threshold: %.4f, with precision %.3f and recall %.3f",
            best.threshold,
            best.precision,
            best.recall,
        )
    log.info("Report: %s", page)
