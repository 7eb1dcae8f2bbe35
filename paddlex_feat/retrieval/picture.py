"""A picture of queries with their nearest gallery images, right and wrong ones marked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.dataset.records import ImageList
from paddlex_feat.files import atomic_path
from paddlex_feat.pipeline.decode import read_rgb
from paddlex_feat.retrieval.evaluator import Evaluation

RIGHT, WRONG, QUERY = "#1a9850", "#d73027", "#333333"
NEIGHBOURS = 5


def choose_queries(first_match: np.ndarray, rows: int, seed: int = 0) -> list[int]:
    """Query indices to show: failures and successes in the proportion in which they occur,
    drawn at random, but at least one failure if there is any; failures first."""
    rng = np.random.default_rng(seed)
    wrong = np.flatnonzero(first_match > 1)
    right = np.flatnonzero(first_match == 1)
    total = len(wrong) + len(right)
    show_wrong = min(len(wrong), max(round(rows * len(wrong) / max(total, 1)), 1))
    show_right = min(len(right), rows - show_wrong)
    return [
        *rng.permutation(wrong)[:show_wrong].tolist(),
        *rng.permutation(right)[:show_right].tolist(),
    ]


def draw_retrieval(evaluation: Evaluation, query: ImageList, gallery: ImageList, path: Path, rows: int = 8) -> None:
    """Write a PNG: one row a query, then its five nearest gallery images by cosine similarity."""
    from matplotlib.figure import Figure

    shown = choose_queries(evaluation.metrics.first_match, rows)
    columns = min(NEIGHBOURS, len(gallery))
    figure = Figure(figsize=(1.55 * (columns + 1) + 0.4, 1.95 * len(shown) + 0.8), layout="constrained")
    grid = figure.subplots(len(shown), columns + 1, squeeze=False)
    for row, q in enumerate(shown):
        _draw_image(grid[row][0], query, q, f"query · class {query.labels[q]}", QUERY)
        scores = evaluation.gallery @ evaluation.query[q]
        for column, g in enumerate(np.argsort(-scores, kind="stable")[:columns].tolist(), 1):
            right = gallery.labels[g] == query.labels[q]
            title = f"{'✓' if right else '✗'} class {gallery.labels[g]} · {scores[g]:.2f}"
            _draw_image(grid[row][column], gallery, g, title, RIGHT if right else WRONG)
    headline = evaluation.headline()
    figure.suptitle(
        f"recall@1 {headline['recall1']:.3f}   recall@5 {headline['recall5']:.3f}   mAP {headline['mAP']:.3f}   "
        f"({evaluation.metrics.matched_queries} queries, {len(gallery)} gallery images)",
        fontsize=10,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_image(axes: Any, records: ImageList, index: int, title: str, colour: str) -> None:
    axes.imshow(read_rgb(records.root / records.paths[index]))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=7.5, color=colour, pad=3)
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(3)
