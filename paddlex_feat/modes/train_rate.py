"""Name the learning rate as a cause where the features of an epoch cannot be evaluated."""

from __future__ import annotations

import numpy as np

from paddlex_feat.config.train_schema import TrainSection
from paddlex_feat.errors import EvaluationError, WeightsError
from paddlex_feat.training.checkpoint import TrainingState

_HUGE = 1e3  # larger values do not occur in a network that learns
_USUAL = 0.01  # learning rate that is advised at most


def explain_failure(error: EvaluationError, settings: TrainSection, state: TrainingState) -> EvaluationError:
    """The error of features that are not finite with the learning rate as its cause, once there was a step."""
    if not state.progress.step or "not finite" not in error.what:
        return error
    what = f"{error.what} {_cause(settings, state)[0]}"
    return EvaluationError(what, where=error.where, fix=_fix(settings), code=error.code)


def explain_disagreement(error: WeightsError, settings: TrainSection, state: TrainingState) -> WeightsError:
    """The error of an export that differs from its weights, with the learning rate where that has ruined them."""
    cause, probable = _cause(settings, state)
    if not probable:
        return error
    return WeightsError(f"{error.what} {cause}", where=error.where, fix=_fix(settings), code=error.code)


def explain_collapse(settings: TrainSection, state: TrainingState) -> str:
    """A warning for an epoch after which nearly all images have the same features."""
    what = "Nearly all images have the same features: the network distinguishes nothing."
    return f"{what} {_cause(settings, state)[0]} {_fix(settings)}" if state.progress.step else what


def _cause(settings: TrainSection, state: TrainingState) -> tuple[str, bool]:
    """What the network looks like, and whether the learning rate has probably made it so."""
    arrays = {name: tensor.numpy() for name, tensor in state.weights().items()}
    broken = sum(not np.isfinite(array).all() for array in arrays.values())
    name, largest = max(((n, float(np.abs(a).max())) for n, a in arrays.items() if a.size), key=lambda pair: pair[1])
    probable = bool(broken) or largest > _HUGE
    looks = f"{broken} of {len(arrays)} tensors of the network are not finite"
    if not broken:
        looks = f"The largest value of the network is {largest:.3g}" + (f", in {name}," if probable else "")
    return (
        f"{looks} after step {state.progress.step}; a {'probable' if probable else 'possible'} cause is a learning "
        f"rate that is too high: Train.learning_rate is {settings.learning_rate:g}."
    ), probable


def _fix(settings: TrainSection) -> str:
    lower = min(settings.learning_rate / 10, _USUAL)
    return (
        f"Start a new run with a lower one, such as -o Train.learning_rate={lower:g}, or with more Train.warmup_steps; "
        "checkpoints of earlier epochs are intact, that of this one is useless."
    )
