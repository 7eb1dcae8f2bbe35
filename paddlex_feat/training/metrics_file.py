"""metrics.jsonl: read what may come from anybody, and draw it as curves.png."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from paddlex_feat.fileio.atomic import atomic_path

log = logging.getLogger(__name__)
METRICS, CURVES = "metrics.jsonl", "curves.png"
# The keys that a line of each kind must have, and bounds.
_COMMON_KEYS = {"epoch", "step"}
REQUIRED_KEYS = {
    "train": _COMMON_KEYS | {"lr", "loss"},
    "eval": _COMMON_KEYS | {"recall1", "recall5", "mAP"},
    "save": _COMMON_KEYS,
}
MAX_LINE_BYTES = 4096
MAX_FILE_BYTES = 2**30
MAX_NUMBER = 1e30


def metrics_until(path: Path, epoch: int = sys.maxsize, step: int = sys.maxsize) -> list[str]:
    """Read the lines of a metrics.jsonl up to the end of `epoch`, and of the next epoch's training up to `step`.

    Lines of another form, such as an incomplete one of a killed run, are dropped with one warning.
    """
    kept, dropped = [], 0
    for line in _lines(path) if path.is_file() else ():
        row = _row(line)
        if row is None:
            dropped += 1
            continue
        begun = row["kind"] == "train" and row["epoch"] == epoch + 1 and row["step"] <= step
        if row["epoch"] <= epoch or begun:
            kept.append(line)
    if dropped:
        log.warning("%s: %d lines are not readable and are left out.", path, dropped)
    return kept


def _lines(path: Path) -> Iterator[str]:
    """Yield the lines of any file, long ones in pieces, and nothing after MAX_FILE_BYTES."""
    with path.open("rb") as stream:
        left = MAX_FILE_BYTES
        while left > 0 and (line := stream.readline(MAX_LINE_BYTES)):
            left -= len(line)
            yield line.decode(errors="replace").rstrip("\n") + "\n"


def _row(line: str) -> dict[str, Any] | None:
    """Parse a line that `RunLogger` wrote, its kind and finite numbers; None for any other line."""
    try:
        row = json.loads(line)
        numbers = {name: value for name, value in row.items() if name not in ("kind", "set")}
        needed = REQUIRED_KEYS[row["kind"]]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    valid = all(type(value) in (int, float) and abs(value) < MAX_NUMBER for value in numbers.values())
    valid = valid and row.get("set", "validation") == "validation"
    return row if valid and needed <= set(numbers) and numbers["epoch"] >= (row["kind"] == "train") else None


def _epoch_means(rows: list[dict[str, Any]], name: str) -> dict[int, float]:
    values: dict[int, list[float]] = {}
    for row in rows:
        if name in row:
            values.setdefault(row["epoch"], []).append(row[name])
    return {epoch: sum(v) / len(v) for epoch, v in values.items()}


def draw_curves(metrics: Path, path: Path) -> None:
    """Draw losses, retrieval metrics and learning rate over the epochs, from metrics.jsonl to a PNG."""
    if not metrics.is_file():
        return
    rows = [json.loads(line) for line in metrics_until(metrics)]
    train, evals = ([r for r in rows if r.get("kind") == kind] for kind in ("train", "eval"))
    if not train:
        return
    from matplotlib.figure import Figure

    steps_per_epoch = max(r["step"] / r["epoch"] for r in train)
    x = [r["step"] / steps_per_epoch for r in train]
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    losses, retrieval, rate = figure.subplots(1, 3)
    terms = [name for name in train[0] if name.lower().endswith("loss")]
    for i, name in enumerate(terms if len(terms) > 2 else ["loss"]):  # a single term is a multiple of the loss
        losses.plot(x, [r.get(name) for r in train], color=f"C{i}", linewidth=0.6, alpha=0.25)
        means = _epoch_means(train, name)
        losses.plot(list(means), list(means.values()), color=f"C{i}", label=name)
    losses.set(title="training losses", xlabel="epoch", ylim=(0, None))
    losses.legend(frameon=False, fontsize=8)
    for name in ("recall1", "recall5", "mAP"):
        retrieval.plot([r["epoch"] for r in evals], [r[name] for r in evals], marker=".", label=name)
    retrieval.set(title="retrieval", xlabel="epoch", ylim=(0, 1.02))
    if evals:
        retrieval.legend(frameon=False, fontsize=8)
    rate.plot(x, [r["lr"] for r in train], color="#555555")
    rate.set(title="learning rate", xlabel="epoch", ylim=(0, None))
    for axes in (losses, retrieval, rate):
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
