"""Say which weights a run delivers as best_model: those that training started from, or those of an epoch."""

from __future__ import annotations

from typing import Any

from paddlex_feat.errors import FeatError
from paddlex_feat.training.checkpoint import Progress


def delivery(progress: Progress) -> dict[str, Any]:
    """Return the entries of train_result.json about best_model; none before the first candidate.

    delivered: "start" if nothing was better than the weights that training started from, "adapted" if nothing was
        better than these with a map of their features, else "epoch".
    delivered_epoch: the epoch, 0 for the start.
    start: recall1, recall5 and mAP of the start, None where it was not a candidate.
    adapted: those of the adapted start, None where it was no better.
    """
    if progress.best < 0:
        return {}
    return {
        "delivered": _kind(progress),
        "delivered_epoch": progress.best_epoch,
        "start": progress.start or None,
        "adapted": progress.adapted or None,
    }


def _kind(progress: Progress) -> str:
    if progress.best_epoch or not progress.start:
        return "epoch"
    return "adapted" if progress.adapted else "start"


def describe_delivery(progress: Progress) -> str:
    """The weights in best_model as the end of a sentence, with their recall1."""
    kind = _kind(progress)
    if kind != "epoch":
        adapted = ", with a map of their features" if kind == "adapted" else ""
        return f"the weights that training started from{adapted} (recall1 {progress.best:.5f})"
    start = f", {progress.start['recall1']:.5f} at the start" if progress.start else ""
    return f"the weights of epoch {progress.best_epoch} (recall1 {progress.best:.5f}{start})"


def with_delivery(error: FeatError, progress: Progress) -> FeatError:
    """The error of a failed training, once there was an evaluation, with the weights that best_model holds."""
    fix = f"{error.fix or ''} best_model holds {describe_delivery(progress)}.".strip()
    explained = type(error)(error.what, where=error.where, fix=fix, code=error.code)
    return explained.with_result({**error.result, **delivery(progress)})
