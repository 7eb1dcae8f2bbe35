"""Arithmetic of resumed runs: what is left to train, and how completed steps count."""

from __future__ import annotations

import logging
from pathlib import Path

from paddlex_feat.errors import ConfigError
from paddlex_feat.training.checkpoint import Progress

log = logging.getLogger(__name__)


def check_remaining(progress: Progress, epochs: int, early_stopping: int | None, start: Path, optional: bool) -> None:
    """Check that a resumed run has something left to train; a longer run restarts the patience of early stopping.

    Args:
        progress: of the checkpoint `start`.
        epochs: length of the new run.
        early_stopping: evaluations without improvement after which the run ends; None: never.
        start: the checkpoint, for messages.
        optional: whether a finished run is acceptable, as with Train.resume=auto.

    Raises:
        ConfigError: nothing is left, and `optional` is False.
    """
    stopped = early_stopping is not None and progress.evals_since_best >= early_stopping
    if stopped and epochs > progress.epochs > 0:
        progress.evals_since_best, stopped = 0, False
    if progress.epoch < epochs and not (stopped and not progress.step_in_epoch):
        return
    done = f"{progress.epoch} epochs are done, Train.epochs_iters is {epochs}"
    if stopped:
        done += f", and the last {progress.evals_since_best} evaluations gave no better recall1 (Train.early_stopping)"
    if not optional:
        raise ConfigError(
            f"Nothing is left to train: {done}.",
            where=str(start),
            fix=f"Ask for more than {max(progress.epoch, progress.epochs)} with -o Train.epochs_iters=N.",
            code="nothing-left",
        )
    log.info("Nothing is left to train: %s.", done)


def count_steps(progress: Progress, steps_per_epoch: int, batch_signature: str) -> None:
    """Count completed steps in steps of this run; if an epoch has other batches now, restart an interrupted one."""
    same = progress.batch_signature == batch_signature and progress.step_in_epoch <= steps_per_epoch
    if progress.step_in_epoch and not same:
        log.warning(
            "Batch size, accumulation or device count changed since the checkpoint: the interrupted epoch restarts."
        )
        progress.step_in_epoch = 0
    progress.batch_signature = batch_signature
    progress.step = progress.epoch * steps_per_epoch + progress.step_in_epoch
