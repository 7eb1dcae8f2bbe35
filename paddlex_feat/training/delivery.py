"""Say which weights a run delivers as best_model: those that training started from, or those of an epoch."""

from __future__ import annotations

from typing import Any

from paddlex_feat.errors import FeatError
from paddlex_feat.training.checkpoint import Progress


def delivery(progress: Progress) -> dict[str, Any]:
    """Return the entries of train_result.json about best_model; none before the first candidate.

    delivered: "start" if no epoch was better than the weights that training started from, else "epoch".
    delivered_epoch: the epoch, 0 for the start.
    start: recall1, recall5 and mAP of the start, None where it was not a candidate.
    """
    if progress.best < 0:
        return {}
    delivered = "start" if progress.start and not progress.best_epoch else "epoch"
    return {"delivered": delivered, "delivered_epoch": progress.best_epoch, "start": progress.start or None}


def describe_delivery(progress: Progress) -> str:
    """The weights in best_model as the end of a sentence, with their recall1."""
    if progress.start and not progress.best_epoch:
        return f"the weights that training started from (recall1 {progress.best:.5f})"
    start = f", {progress.start['recall1']:.5f} at the start" if progress.start else ""
    return f"the weights of epoch {progress.best_epoch} (recall1 {progress.best:.5f}{start})"


def with_delivery(error: FeatError, progress: Progress) -> FeatError:
    """The error of a failed training, once there was an evaluation, with the weights that best_model holds."""
    fix = f"{error.fix or ''} best_model holds {describe_delivery(progress)}.".strip()
    explained = type(error)(error.what, where=error.where, fix=fix, code=error.code)
    return explained.with_result({**error.result, **delivery(progress)})
