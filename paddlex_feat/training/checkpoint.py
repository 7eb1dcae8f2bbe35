"""The state of a run: what `.pdparams`, `.pdopt` and `.pdstates` hold, written and read.

`.pdparams` holds the weights, `.pdopt` the momentum, `.pdstates` epoch, step, best score and classes.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import paddle
from pydantic import ConfigDict, TypeAdapter, ValidationError

from paddlex_feat.errors import WeightsError
from paddlex_feat.files import write_json
from paddlex_feat.models import weights


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        epoch: epochs completed. step: optimizer steps completed.
        best: best recall1 so far, -1 before the first evaluation. best_epoch: its epoch.
        score: recall1 of the last evaluation of this epoch, None if it was not evaluated.
        classes: the data set's label of each class index.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # of read_progress

    epoch: int = 0
    step: int = 0
    best: float = -1.0
    best_epoch: int = 0
    score: float | None = None
    classes: list[int] = field(default_factory=list)


def _momentum_by_name(model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer) -> dict[str, Any]:
    """The optimizer's state under the network's tensor names, which do not depend on the process."""
    state = optimizer.state_dict()
    named = {}
    for name, parameter in model.named_parameters():
        prefix = parameter.name + "_"
        for entry, value in state.items():
            if entry.startswith(prefix):
                named[f"{name}:{entry[len(prefix) :]}"] = value
    return named


def write(
    folder: Path, name: str, model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer, progress: Progress
) -> None:
    """Write `name`.pdparams, .pdopt, .pdstates and .info.json into `folder`."""
    weights.write(folder / f"{name}.pdparams", model.state_dict())
    weights.write(folder / f"{name}.pdopt", _momentum_by_name(model, optimizer))
    weights.write(folder / f"{name}.pdstates", asdict(progress))
    write_json(folder / f"{name}.info.json", {"metric": progress.score, "epoch": progress.epoch})


def read_progress(path: Path) -> Progress:
    """Read a `.pdstates` file written here. Raises WeightsError on another form."""
    try:
        return TypeAdapter(Progress).validate_python(weights.read(path))
    except ValidationError as error:
        raise WeightsError(
            "The file does not hold the state of a run of this program.",
            where=str(path),
            fix="To start from these weights alone, use Train.pretrain_weight_path instead of Train.resume_path.",
        ) from error


def resume(path: Path, model: paddle.nn.Layer, optimizer: paddle.optimizer.Optimizer) -> Progress:
    """Load weights, momentum and progress from `path` (.pdparams) and the files beside it.

    Raises WeightsError if one of the three is missing or does not fit.
    """
    progress = read_progress(path.with_suffix(".pdstates"))
    weights.load(model, path)
    momentum = path.with_suffix(".pdopt")
    saved, parameters = weights.read(momentum), dict(model.named_parameters())
    state, faults = {}, []
    for entry, value in saved.items():
        name, _, kind = str(entry).rpartition(":")
        shape = list(np.shape(value))
        if name in parameters and shape == list(parameters[name].shape):
            state[f"{parameters[name].name}_{kind}"] = paddle.to_tensor(value)
        else:
            faults.append(f"{entry}, shape {shape}")
    if faults or (progress.step and not saved):
        raise WeightsError(
            f"The momentum does not belong to these weights: {faults[0] if faults else 'the file holds none'}.",
            where=str(momentum),
            fix="Resume from a checkpoint of the same model, written by this program.",
        )
    optimizer.set_state_dict(state)
    return progress
