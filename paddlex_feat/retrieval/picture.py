"""A picture of queries with their nearest gallery images, right and wrong ones marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.dataset.records import ImageList
from paddlex_feat.files import atomic_path
from paddlex_feat.pipeline.decode import read_rgb
from paddlex_feat.retrieval.evaluator import Evaluation

RIGHT, WRONG, QUERY = "#1a9850", "#d73027", "#333333"
NEIGHBOURS = 5
BLOCKS = 2  # queries side by side


def choose_queries(first_match: np.ndarray, labels: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """Query indices to show, failures first.

    Failures and successes are in the proportion in which they occur, but at least one failure is
    shown if there is any. They are drawn at random, from different classes as far as these go.

    Args:
        first_match: int [Q], rank of the first match; 0, for a query without one, is never shown.
        labels: class of each query.
    """
    order = np.random.default_rng(seed).permutation(len(first_match))
    wrong, right = ([int(q) for q in order if test(first_match[q])] for test in (lambda r: r > 1, lambda r: r == 1))
    share = round(count * len(wrong) / max(len(wrong) + len(right), 1))
    show_wrong = min(len(wrong), max(share, 1))
    show_right = min(len(right), count - show_wrong)
    return _varied(wrong, labels)[:show_wrong] + _varied(right, labels)[:show_right]


def _varied(queries: list[int], labels: Sequence[int]) -> list[int]:
    """The same queries, the first of every class before the second of any."""
    seen: Counter[int] = Counter()
    rounds = []
    for q in queries:
        rounds.append(seen[labels[q]])
        seen[labels[q]] += 1
    return [q for _, q in sorted(zip(rounds, queries, strict=True), key=lambda pair: pair[0])]


def draw_retrieval(evaluation: Evaluation, query: ImageList, gallery: ImageList, path: Path, count: int = 10) -> None:
    """Write a PNG of `count` queries, each with its five nearest gallery images by cosine similarity."""
    from matplotlib.figure import Figure

    shown = choose_queries(evaluation.ranking.first_match, query.labels, count)
    columns = min(NEIGHBOURS, len(gallery))
    rows = -(-len(shown) // BLOCKS)
    figure = Figure(figsize=(BLOCKS * 1.12 * (columns + 1) + 0.6, 1.5 * rows + 0.5), layout="constrained")
    halves = figure.subfigures(1, BLOCKS, squeeze=False, wspace=0.03)[0]
    for block, half in enumerate(halves):
        grid = half.subplots(rows, columns + 1, squeeze=False)
        for row in range(rows):
            place = block * rows + row
            _draw_row(grid[row], evaluation, query, gallery, shown[place] if place < len(shown) else None)
    headline = evaluation.headline()
    figure.suptitle(
        f"recall@1 {headline['recall1']:.3f}   recall@5 {headline['recall5']:.3f}   mAP {headline['mAP']:.3f}   "
        f"({evaluation.metrics.matched_queries} queries, {len(gallery)} gallery images)",
        fontsize=10,
    )
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _draw_row(cells: Any, evaluation: Evaluation, query: ImageList, gallery: ImageList, q: int | None) -> None:
    """One query and its neighbours; empty cells where there is no query left."""
    if q is None:
        for axes in cells:
            axes.set_axis_off()
        return
    _draw_image(cells[0], query, q, f"query: {query.labels[q]}", QUERY)
    scores = evaluation.gallery @ evaluation.query[q]
    matches = np.asarray(gallery.labels) == query.labels[q]
    nearest = np.lexsort((matches, -scores))[: len(cells) - 1]  # a tie counts against us, as in the metrics
    for axes, g in zip(cells[1:], nearest.tolist(), strict=True):
        right = gallery.labels[g] == query.labels[q]
        title = f"{'✓' if right else '✗'} {gallery.labels[g]}  ({scores[g]:.2f})"
        _draw_image(axes, gallery, g, title, RIGHT if right else WRONG)


def _draw_image(axes: Any, records: ImageList, index: int, title: str, colour: str) -> None:
    axes.imshow(read_rgb(records.root / records.paths[index]))
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=7, color=colour, pad=3)
    for spine in axes.spines.values():
        spine.set_color(colour)
        spine.set_linewidth(3)
