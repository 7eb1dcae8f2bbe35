"""Plots of similarities and thresholds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.evaluation.analysis import Pairs
from paddlex_feat.evaluation.threshold import Threshold, ThresholdCurve
from paddlex_feat.fileio.atomic import atomic_path

MATCHING, OTHER, F1 = "#1a9850", "#d73027", "#4269d0"
_BINS = 80
_POINTS = 4000  # of a curve; the picture cannot show more


def draw_similarities(pairs: Pairs, suggested: Threshold, path: Path) -> None:
    """Write a PNG: histograms of matching and of other pairs, each normalised by itself."""
    figure, axes = _figure()
    edges = np.histogram_bin_edges(np.concatenate([pairs.matching, pairs.other]), _BINS)
    for values, name, colour in ((pairs.other, "different classes", OTHER), (pairs.matching, "one class", MATCHING)):
        share = np.histogram(values, edges)[0] / max(len(values), 1)
        axes.stairs(share, edges, fill=True, alpha=0.45, color=colour, label=f"{name} ({len(values):,} pairs)")
    axes.set(title="Similarities of queries and gallery images", xlabel="similarity", ylabel="share of the pairs")
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
    _finish(figure, axes, suggested, path)


def draw_thresholds(curve: ThresholdCurve, suggested: Threshold, path: Path) -> None:
    """Write a PNG: precision, recall and F1 at every threshold."""
    figure, axes = _figure()
    points = np.unique(np.linspace(0, len(curve.similarity) - 1, min(len(curve.similarity), _POINTS)).astype(int))
    rising = points[::-1]
    for values, name, colour in (
        (curve.precision, "precision", MATCHING),
        (curve.recall, "recall", "#efb118"),
        (curve.f1, "F1", F1),
    ):
        # The values at a similarity apply to all thresholds from the next lower similarity up to it.
        axes.step(curve.similarity[rising], values[rising], where="pre", color=colour, label=name, linewidth=1.6)
    axes.set(title="If the nearest image is accepted from a threshold on", xlabel="threshold", ylim=(0, 1.03))
    _finish(figure, axes, suggested, path)


def _figure() -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _finish(figure: Any, axes: Any, suggested: Threshold, path: Path) -> None:
    """Mark the suggested threshold, if there is one, and write."""
    if suggested.threshold is not None:
        label = f"suggested threshold {suggested.threshold:.3f}"
        axes.axvline(suggested.threshold, color="#333", linestyle="--", linewidth=1, label=label)
    axes.legend(frameon=False, fontsize=8)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=130, format="png")
