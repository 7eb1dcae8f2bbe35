"""Pictures of queries with their nearest gallery images, right and wrong ones marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.fileio.atomic import atomic_path
from paddlex_feat.reports.examples import NEIGHBOURS, Example, Examples, number, shortened
from paddlex_feat.reports.fonts import DEFAULT, families

RIGHT, WRONG, QUERY = "#1a9850", "#d73027", "#333333"
BLOCKS = 2  # queries side by side
_CELL, _ROW, _IMAGE = 1.12, 1.4, 1.04  # inches: width, height, side of the square that holds the image
_MARGIN, _TOP = 0.2, 0.45  # inches, around and between the blocks, and for the title


def choose_queries(first_match: np.ndarray, labels: Sequence[int], count: int, seed: int = 0) -> list[int]:
    """Query indices to show, failures first.

    Failures and successes are in the proportion in which they occur, but at least one failure is
    shown if there is any. They are drawn at random, from different classes as far as possible.

    Args:
        first_match: int [Q], rank of the first match; 0, for a query without one, is never shown.
        labels: class of each query.
        count: queries to choose, at most.
        seed: of the random order.
    """
    order = np.random.default_rng(seed).permutation(len(first_match))
    wrong = [int(q) for q in order if first_match[q] > 1]
    right = [int(q) for q in order if first_match[q] == 1]
    share = round(count * len(wrong) / max(len(wrong) + len(right), 1))
    show_wrong = min(len(wrong), max(share, 1))
    show_right = min(len(right), count - show_wrong)
    return _varied(wrong, labels)[:show_wrong] + _varied(right, labels)[:show_right]


def choose_worst(first_match: np.ndarray, labels: Sequence[int], count: int) -> list[int]:
    """Failed queries whose first match has the largest rank, the worst of each class before the second of any.

    Arguments as for `choose_queries`. At equal ranks the earlier query comes first.
    """
    wrong = np.flatnonzero(first_match > 1)
    worst = wrong[np.argsort(-first_match[wrong], kind="stable")]
    return _varied(worst.tolist(), labels)[:count]


def _varied(queries: list[int], labels: Sequence[int]) -> list[int]:
    """The same queries, the first of every class before the second of any."""
    seen: Counter[int] = Counter()
    rounds = []
    for q in queries:
        rounds.append(seen[labels[q]])
        seen[labels[q]] += 1
    return [q for _, q in sorted(zip(rounds, queries, strict=True), key=lambda pair: pair[0])]


def draw_queries(examples: Examples, shown: Sequence[int], title: str, path: Path, first_match: bool = False) -> None:
    """Write a PNG: each query with its nearest gallery images, at most five, in two columns.

    Args:
        examples: of the evaluation.
        shown: query indices, in the order of the picture.
        title: a line above the picture.
        path: of the PNG file.
        first_match: add each query's first match, with its rank.
    """
    from matplotlib.figure import Figure

    lines = [
        (examples.query(q), examples.neighbours(q), examples.first_match(q) if first_match else None) for q in shown
    ]
    columns = max((len(near) for _, near, _ in lines), default=NEIGHBOURS) + 1 + first_match
    rows = max(-(-len(lines) // BLOCKS), 1)
    block = columns * _CELL + _MARGIN
    width, height = BLOCKS * block + _MARGIN, rows * _ROW + _TOP
    figure = Figure(figsize=(width, height))
    # One pair of axes, in inches, for the whole sheet: axes for each image take ten times as long to draw.
    axes = figure.add_axes((0, 0, 1, 1))
    for i, (query, near, match) in enumerate(lines):
        left, top = _MARGIN + i // rows * block, _TOP + i % rows * _ROW
        _draw(axes, left, top, query, f"query: {_title(query)}")
        for column, example in enumerate(near, 1):
            _draw(axes, left + column * _CELL, top, example, _title(example))
        if match:
            title_of_match = f"rank {match.rank} ({number(match.similarity, 2)})"
            _draw(axes, left + (columns - 1) * _CELL, top, match, title_of_match)
    axes.text(width / 2, _TOP / 2, title, fontsize=10, ha="center", va="center")
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def _title(example: Example) -> str:
    """The example's text with the name of its class, or with its number where no font of the machine has the name."""
    return example.text(named=families(example.text()) is not None)


def _draw(axes: Any, left: float, top: float, example: Example, title: str) -> None:
    """One image below its title, in the middle of its cell; its name where there is no image."""
    from matplotlib.patches import Rectangle

    colour = QUERY if example.right is None else RIGHT if example.right else WRONG
    middle, upper = left + _CELL / 2, top + 0.2
    drawn = families(title) or (DEFAULT,)
    axes.text(
        middle, upper - 0.06, title, fontsize=7, color=colour, ha="center", va="bottom", family=drawn, parse_math=False
    )
    height, width = (1, 1) if example.image is None else example.image.shape[:2]
    scale = _IMAGE / max(height, width)
    x, y = middle - width * scale / 2, upper + (_IMAGE - height * scale) / 2
    if example.image is None:
        # Fonts lack many characters that names may contain, so characters beyond ASCII are escaped as in Python.
        name = shortened(example.path.encode("ascii", "backslashreplace").decode(), 60)
        text = "\n".join(["not readable:", *(name[i : i + 15] for i in range(0, len(name), 15))])
        axes.text(
            middle, upper + _IMAGE / 2, text, fontsize=6, color="#777", ha="center", va="center", parse_math=False
        )
    else:
        extent = (x, x + width * scale, y + height * scale, y)
        axes.imshow(example.image, extent=extent, aspect="auto", interpolation="antialiased")
    axes.add_patch(Rectangle((x, y), width * scale, height * scale, fill=False, edgecolor=colour, linewidth=2.5))
