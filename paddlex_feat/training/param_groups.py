"""Parameter groups: which parameters decay, and how fast each part and each depth of the network learns.

Both are attributes that Paddle's parameters carry: a factor on the learning rate, and a regularizer of their own in
the place of the optimizer's weight decay. The optimizers of this package honour them, one tensor at a time or all
together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from paddle import nn
from paddle.regularizer import L2Decay

from paddlex_feat.models.recognizer import Recognizer


@runtime_checkable
class Layered(Protocol):
    """A backbone whose order of computation is not the order of its sublayers."""

    def layers_by_depth(self) -> Sequence[Sequence[str]]:
        """Names of sublayers and parameters, a group for each depth, the one nearest the image first."""


@dataclass(frozen=True)
class Groups:
    """How the parameters of a network differ in learning rate and weight decay; the defaults change nothing.

    Attributes:
        backbone: factor on the learning rate of the backbone.
        neck: of the neck.
        head: of the head.
        layer_decay: factor between the learning rates of neighbouring depths of the backbone, the last of which learns
            at the backbone's rate; None: no difference.
        decay_vectors: whether weight decay applies to parameters of one axis: biases, and scales and shifts of
            normalisations.
    """

    backbone: float = 1.0
    neck: float = 1.0
    head: float = 1.0
    layer_decay: float | None = None
    decay_vectors: bool = True


def set_groups(network: Recognizer, losses: nn.Layer, groups: Groups) -> None:
    """Mark the parameters of a network and its losses before the optimizer is made.

    With depth i of n, the rate of the backbone's parameters is multiplied by layer_decay ** (n - 1 - i) (Clark et
    al., "ELECTRA", arXiv:2003.10555; Bao et al., "BEiT", arXiv:2106.08254). Losses have factors of their own
    (`lr_mult` of a term), so only `decay_vectors` touches them.
    """
    for part, factor in ((network.backbone, groups.backbone), (network.neck, groups.neck), (network.head, groups.head)):
        for parameter in part.parameters() if part is not None else ():
            parameter.optimize_attr["learning_rate"] *= factor
    if groups.layer_decay is not None:
        depths = parameter_depths(network.backbone)
        last = max(depths.values())
        for name, parameter in network.backbone.named_parameters():
            parameter.optimize_attr["learning_rate"] *= groups.layer_decay ** (last - depths[name])
    if not groups.decay_vectors:
        for parameter in [*network.parameters(), *losses.parameters()]:
            if len(parameter.shape) == 1:
                parameter.regularizer = L2Decay(0.0)


def parameter_depths(backbone: nn.Layer) -> dict[str, int]:
    """Depth of each parameter of a backbone by name, from 0, nearest the image.

    Without `layers_by_depth` each sublayer is one depth, in the order in which they were made; lists and sequences of
    layers are opened. Parameters that belong to no sublayer, or are not named by `layers_by_depth`, are taken to come
    first.
    """
    groups = backbone.layers_by_depth() if isinstance(backbone, Layered) else [[name] for name in _units(backbone)]
    depths = {}
    for parameter, _ in backbone.named_parameters():
        found = [i for i, names in enumerate(groups) if any(f"{parameter}.".startswith(f"{name}.") for name in names)]
        depths[parameter] = found[0] if found else 0
    return depths


def _units(layer: nn.Layer, prefix: str = "") -> list[str]:
    names: list[str] = []
    for name, child in layer.named_children():
        is_container = isinstance(child, (nn.LayerList, nn.Sequential))
        own = _units(child, f"{prefix}{name}.") if is_container else [f"{prefix}{name}"] if child.parameters() else []
        names += own
    return names
