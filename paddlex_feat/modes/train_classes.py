"""Compare the classes of a run with those of its checkpoint or pretrained weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from paddlex_feat.errors import ConfigError
from paddlex_feat.fileio.atomic import read_result
from paddlex_feat.fileio.atomic_folder import open_during_swap
from paddlex_feat.models import safe_pickle

if TYPE_CHECKING:  # it imports Paddle
    from paddlex_feat.training.checkpoint import Progress

log = logging.getLogger(__name__)
_SHOWN = 5  # labels that a message lists


def require_same_classes(progress: Progress, classes: Sequence[int], num_classes: int, start: Path, key: str) -> None:
    """Raise ConfigError unless the resumed run has the data set's classes and a classifier of the same width.

    Args:
        progress: of the checkpoint `start`.
        classes: labels of train.txt, in order.
        num_classes: width of the new run's classifier.
        start: the checkpoint, for messages.
        key: the configuration key that asks to resume.
    """
    _require_equal(progress.classes, classes, start, key)
    if progress.num_classes not in (0, num_classes):  # 0: not recorded
        raise ConfigError(
            f"The classifier would have {num_classes} classes, that of the run that is resumed has "
            f"{progress.num_classes}.",
            where=str(start),
            fix=f"Use -o Train.num_classes={progress.num_classes}, or {_new_run(start, key)}.",
            code="classifier-width-changed",
        )


def require_classes_of(start: Path, classes: Sequence[int], key: str, title: str = "train.txt") -> None:
    """Raise ConfigError where the checkpoint `start` (.pdparams) has other classes than the list `title`.

    Works without Paddle. An unreadable checkpoint is ignored here; loading it raises the error.
    """
    try:
        with open_during_swap(start.with_suffix(".pdstates")) as stream:
            former = safe_pickle.load(stream)["classes"]
        before = [int(label) for label in np.asarray(former, np.int64)]
    except Exception:  # noqa: BLE001 - a damaged file can raise nearly anything
        return
    _require_equal(before, classes, start, key, title)


def _require_equal(
    before: Sequence[int], classes: Sequence[int], start: Path, key: str, title: str = "train.txt"
) -> None:
    if list(before) != list(classes):
        raise ConfigError(
            f"{title} has other classes than the run that is resumed: {_differences(before, classes)}.",
            where=str(start),
            fix=f"Resume with the same data set, or {_new_run(start, key)}.",
            code="classes-changed",
        )


def _new_run(start: Path, key: str) -> str:
    run = Path(os.path.abspath(start)).parent.parent.resolve()  # noqa: PTH100 - training.run_folder.run_of
    best = run / "best_model" / "best_model.pdparams"
    weights = best if best.is_file() else start
    new_run = f"start a new run from its weights, which keep all but the classifier: -o {key}=null "
    return f"{new_run}-o Train.pretrain_weight_path={weights}"


def _differences(before: Sequence[int], now: Sequence[int]) -> str:
    parts = [f"{len(now)} classes, the run has {len(before)}"]
    for word, labels in (("added", set(now) - set(before)), ("removed", set(before) - set(now))):
        shown = ", ".join(map(str, sorted(labels)[:_SHOWN])) + (", …" if len(labels) > _SHOWN else "")
        parts += [f"{word}: {shown}"] if labels else []
    return "; ".join(parts)


def has_other_classes(weights: Path, classes: Sequence[int]) -> bool | None:
    """Does the class_map.json of the run that wrote `weights` hold other classes? None where there is none.

    Classes appended after the former ones, in a classifier with room for them, do not count as others.
    """
    for folder in (weights.parent, weights.parent.parent):
        known = read_result(folder / "class_map.json")
        if known:
            former = [known.get(str(index)) for index in range(len(known))]
            return former != list(classes[: len(former)])
    return None


def log_classifier(other: bool | None, loaded: bool) -> None:
    """Log in one line which classes the initial classifier of a new run was trained for."""
    if other:
        log.warning(
            "These weights were trained with other classes than train.txt has: the classifier is re-initialised."
        )
    elif loaded and other is None:
        log.info("The classifier is taken over too, as its width fits: its classes should be those of train.txt.")
    elif loaded:
        log.info("The classifier is taken over too: these weights were trained with the classes of train.txt.")
