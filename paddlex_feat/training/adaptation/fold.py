"""Put an affine map of a network's output into the network's own tensors, whose names and shapes stay.

A neck that is a fully connected layer takes the map itself. Before a BatchNorm neck, which cannot mix channels, it is
the last 1 x 1 convolution that does: the BatchNorm is made to pass its input on in evaluation.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from paddlex_feat.errors import ConfigError
from paddlex_feat.training.adaptation.maps import AffineMap

log = logging.getLogger(__name__)
State = dict[str, np.ndarray]


class HasTensors(Protocol):
    """A network of Paddle, which this module does not import."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors by name."""


_FC = "neck.fc"
_BN = "neck.feat_bn"
_CONV = "backbone.last_conv"
EXPONENT = "backbone.pool.p"  # of GeM


def require_foldable(names: set[str]) -> None:
    """Raise ConfigError unless a network with these tensors ends in a layer that can take a map."""
    if f"{_FC}.weight" not in names and not {f"{_CONV}.weight", f"{_CONV}.bias", f"{_BN}.weight"} <= names:
        raise ConfigError(
            "The network does not end in a linear layer that could take the adaptation.",
            where="Train.method=adapt, Train.adapt",
            fix="Use Model.neck=linear, or give the exported model as Train.pretrain_weight_path.",
            code="adapt-no-linear-layer",
        )


def takes_map(name: str) -> bool:
    """Whether an adaptation may change the tensor of this name."""
    return name == EXPONENT or name.startswith((f"{_FC}.", f"{_BN}.", f"{_CONV}."))


def with_exponent(state: State, exponent: float) -> State:
    """Return tensors with another exponent of the pooling GeM."""
    return {**state, EXPONENT: np.full_like(state[EXPONENT], exponent)}


def identity_neck(fresh: State) -> State:
    """Return the tensors of a neck, by the names of `fresh`, with which it passes features on."""
    known = {f"{_BN}.{kind}": fill for kind, fill in (("weight", 1), ("bias", 0), ("_mean", 0), ("_variance", 1))}
    known[f"{_FC}.bias"] = 0
    return {
        name: np.eye(len(value), dtype=np.float32) if name == f"{_FC}.weight" else np.full_like(value, known[name])
        for name, value in fresh.items()
    }


def start_neck_as_identity(network: HasTensors, fresh: Sequence[str]) -> None:
    """Fill a network's neck, if a weight file had none, so that it passes features on.

    Args:
        network: of Paddle.
        fresh: names of its tensors that the file did not have.
    """
    tensors = network.state_dict()
    neck = identity_neck({name: tensors[name].numpy() for name in fresh if name.startswith("neck.")})
    if neck:
        log.info("The file has no neck: it starts as the identity.")
    for name, values in neck.items():
        tensors[name].set_value(values)


def fold(state: State, chosen: AffineMap, variance: np.ndarray, kept: float, epsilon: float) -> State:
    """Return tensors with which the network gives the map of what it gave with `state`.

    Args:
        state: the network's tensors by name, float32, with an output of D numbers.
        chosen: a map of D numbers to D.
        variance: of each output of the map over the training images, float64, for the BatchNorm's statistics: in
            training it then normalizes by nearly what it does in evaluation.
        kept: the factor of a dropout layer between convolution and BatchNorm in evaluation.
        epsilon: of the BatchNorm.

    Raises ConfigError if no layer can take the map.
    """
    require_foldable(set(state))
    matrix, offset = chosen.matrix, chosen.offset
    new = dict(state)
    if f"{_FC}.weight" in state:  # Paddle's Linear computes x @ weight + bias
        weight, bias = (state[f"{_FC}.{kind}"].astype(np.float64) for kind in ("weight", "bias"))
        new[f"{_FC}.weight"] = _single(weight @ matrix.T)
        new[f"{_FC}.bias"] = _single(matrix @ bias + offset)
        return new
    gamma, beta, mean, own = (
        state[f"{_BN}.{kind}"].astype(np.float64) for kind in ("weight", "bias", "_mean", "_variance")
    )
    scale = gamma / np.sqrt(own + epsilon)
    weight, bias = (state[f"{_CONV}.{kind}"].astype(np.float64) for kind in ("weight", "bias"))
    # The network's output is scale * (kept * (weight x + bias) - mean) + beta.
    through = matrix * scale
    new[f"{_CONV}.weight"] = _single((through @ weight[:, :, 0, 0])[:, :, None, None])
    new[f"{_CONV}.bias"] = _single(through @ bias + (matrix @ (beta - scale * mean) + offset) / kept)
    variance = _single(variance).astype(np.float64)  # the BatchNorm's factor must be 1 with what it reads
    new[f"{_BN}.weight"] = _single(np.sqrt(variance + epsilon))
    new[f"{_BN}._variance"] = _single(variance)
    new[f"{_BN}._mean"] = np.zeros_like(state[f"{_BN}._mean"])
    new[f"{_BN}.bias"] = np.zeros_like(state[f"{_BN}.bias"])
    return new


def _single(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)
