"""Freeze parameters by name pattern."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

from paddle import nn

from paddlex_feat.errors import ConfigError


def freeze(model: nn.Layer, patterns: Sequence[str]) -> list[nn.Layer]:
    """Exclude every parameter that a pattern matches from training.

    Args:
        model: the network.
        patterns: shell patterns of whole names ("backbone.stages.0.*"), or the name of a layer, which stands for all
            its parameters ("backbone").

    Returns:
        The BatchNorm layers whose own parameters are all frozen. Their statistics should not change either, so they
        belong in evaluation mode.

    Raises:
        ConfigError: a pattern matches nothing, or nothing is left to train.
    """
    parameters = dict(model.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        found = {n for n in parameters if fnmatch.fnmatchcase(n, pattern) or n.startswith(f"{pattern}.")}
        if not found:
            near = difflib.get_close_matches(pattern, parameters, 3, cutoff=0.3)
            raise ConfigError(
                f"No parameter is called {pattern}.",
                where="Train.freeze",
                fix=f"Names are like {', '.join(near or list(parameters)[:3])}; * stands for any text.",
                code="freeze-unknown",
            )
        frozen |= found
    for name in frozen:
        parameters[name].stop_gradient = True
    if all(p.stop_gradient for p in parameters.values()):
        raise ConfigError(
            "Everything is frozen: nothing is left to train.",
            where="Train.freeze",
            fix="Freeze less.",
            code="all-frozen",
        )
    return _frozen_batchnorms(model, {id(parameters[name]) for name in frozen})


def batchnorms(layer: nn.Layer) -> list[nn.Layer]:
    """All BatchNorm layers of a network or a part of it, those that share statistics among devices included."""
    return [sub for sub in layer.sublayers() if isinstance(sub, nn.layer.norm._BatchNormBase)]


def _frozen_batchnorms(model: nn.Layer, frozen: set[int]) -> list[nn.Layer]:
    at_rest = []
    for layer in batchnorms(model):
        own = layer.parameters(include_sublayers=False)
        if own:
            held = [p for p in own if id(p) in frozen]
            if len(held) == len(own):
                at_rest.append(layer)
            for parameter in held if len(held) < len(own) else []:
                # Paddle 3.3 gives neither of a BatchNorm's two a gradient unless both want one.
                parameter.stop_gradient = False
                parameter.optimize_attr["learning_rate"] = 0.0
    return at_rest
