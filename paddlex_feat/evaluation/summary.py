"""All figures of an evaluation for its reports, as one value."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation.analysis import (
    ClassScore,
    Confusion,
    Pairs,
    class_scores,
    confusions,
    pair_similarities,
    recall1_interval,
    unmatched_classes,
)
from paddlex_feat.evaluation.baseline import NAME, better_in
from paddlex_feat.evaluation.baseline import as_result as baseline_result
from paddlex_feat.evaluation.evaluator import Evaluation
from paddlex_feat.evaluation.metrics import RetrievalMetrics
from paddlex_feat.evaluation.threshold import Threshold, ThresholdCurve, threshold_curve, thresholds

WORST = 20  # classes, and confused pairs, in the result file
UNMATCHED = 100  # queries in the result file


@dataclass(frozen=True)
class Summary:
    """Result of `summarise`; the functions that compute the parts document them.

    Attributes:
        unmatched: indices of the queries without a gallery match.
        thresholds: the suggested one first.
        baseline: metrics of raw pixels; None: not computed.
    """

    metrics: RetrievalMetrics
    interval: tuple[float, float]
    classes: list[ClassScore]
    unmatched: list[int]
    unmatched_classes: dict[int, int]
    confused: list[Confusion]
    curve: ThresholdCurve
    thresholds: list[Threshold]
    pairs: Pairs
    gallery: int
    baseline: RetrievalMetrics | None = None
    baseline_name: str = NAME

    @property
    def pixels_better_in(self) -> list[str]:
        """The metrics in which raw pixels are better, with both figures."""
        return better_in(self.baseline, self.metrics)

    @property
    def suggested(self) -> Threshold:
        """The threshold of the largest F1."""
        return self.thresholds[0]


def summarise(evaluation: Evaluation, query: ImageList, gallery: ImageList) -> Summary:
    """Analyse an evaluation of these two lists."""
    ranking, counts = evaluation.ranking, evaluation.metrics
    first = ranking.first_match
    query_labels, gallery_labels = np.asarray(query.labels), np.asarray(gallery.labels)
    curve = threshold_curve(first, ranking.similarity[:, 0])
    return Summary(
        metrics=counts,
        interval=recall1_interval(int(np.count_nonzero(first == 1)), counts.matched_queries),
        classes=class_scores(first, ranking.average_precision, query_labels),
        unmatched=np.flatnonzero(first == 0).tolist(),
        unmatched_classes=unmatched_classes(first, query_labels),
        confused=confusions(first, query_labels, gallery_labels[ranking.nearest[:, 0]]),
        curve=curve,
        thresholds=thresholds(curve),
        pairs=pair_similarities(
            evaluation.query, query_labels, evaluation.gallery, gallery_labels, evaluation.self_pairs
        ),
        gallery=len(gallery),
        baseline=evaluation.baseline,
    )


def as_result(summary: Summary, query: ImageList) -> dict[str, Any]:
    """The summary for evaluate_result.json: plain values without NaN."""
    counts = summary.metrics
    return {
        "recall": {str(k): value for k, value in counts.recall.items()},
        "mAP@R": counts.mean_ap_at_r,
        "MRR": counts.mrr,
        "recall1_interval": list(summary.interval),
        "queries": counts.matched_queries,
        "unmatched_queries": counts.unmatched_queries,
        "unmatched": [
            {"path": query.paths[q], "label": query.labels[q], "line": query.lines[q] if query.lines else None}
            for q in summary.unmatched[:UNMATCHED]
        ],
        "gallery": summary.gallery,
        "baseline": baseline_result(summary.baseline),
        "classes": len(summary.classes),
        "suggested_threshold": summary.suggested.threshold,
        "thresholds": [asdict(row) for row in summary.thresholds],
        "worst_classes": [
            {"label": c.label, "queries": c.queries, "recall1": c.recall1, "mAP": c.mean_ap, **_named(query, c.label)}
            for c in summary.classes[:WORST]
        ],
        "confused": [
            {"label": c.label, "taken_for": c.taken_for, "count": c.count, "query": query.paths[c.query]}
            | _named(query, c.label)
            | _named(query, c.taken_for, "taken_for_name")
            for c in summary.confused[:WORST]
        ],
    }


def _named(query: ImageList, label: int, key: str = "name") -> dict[str, str]:
    """The name of a class, where it has one beside its number."""
    return {key: query.names[label]} if label in query.names else {}
