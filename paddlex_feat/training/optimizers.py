"""Optimizers by name. Importing this module does not import Paddle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from paddlex_feat.config.base import Section, key
from paddlex_feat.config.parts import Builder, NoParams
from paddlex_feat.config.registry import Registry

KEY = "Train.optimizer"


@dataclass(frozen=True)
class OptimizerContext:
    """Settings that all optimizers share.

    Attributes:
        learning_rate: peak of the schedule, which sets the rate before every step.
        weight_decay: Train.weight_decay.
        momentum: Train.momentum.
        grad_clip: bound of the gradient's norm as Paddle takes it, or None.
        multi_tensor: whether to update all tensors in one call, where the optimizer can.
    """

    learning_rate: float
    weight_decay: float
    momentum: float = 0.9
    grad_clip: Any = None
    multi_tensor: bool = False


@dataclass(frozen=True)
class OptimizerSpec:
    """An optimizer that configurations can name.

    The builder is called as `build(parameters, context, params)` with a list of Paddle parameters, an
    OptimizerContext and an instance of `params`, and returns a `paddle.optimizer.Optimizer`. Its state must be in
    `state_dict()`, named "<parameter>_<kind>", in tensors of the parameter's shape; or of one element, if the kind
    contains "_pow_acc".

    Attributes:
        name: in `Train.optimizer`.
        build: the builder.
        params: the optimizer's own keys, in `Train.optimizer_params`.
        rows: called as `rows(context, params)`, returns its step for some rows of a matrix as
            `training.classifier.row_rules.RowRule`, for `Model.head_sample`. None: it cannot change some rows alone.
    """

    name: str
    build: Builder
    params: type[Section] = NoParams
    rows: Builder | None = None


class AdamWParams(Section):
    """Keys of adamw."""

    beta1: float = key(0.9, "Decay of the mean of gradients.", ge=0, lt=1)
    beta2: float = key(0.999, "Decay of the mean of squared gradients.", ge=0, lt=1)
    epsilon: float = key(1e-8, "Added to the root of the mean of squares.", gt=0)


def _momentum(parameters: Sequence[Any], context: OptimizerContext, params: Section) -> Any:
    """SGD with momentum and L2 decay in the gradient."""
    import paddle

    return paddle.optimizer.Momentum(
        context.learning_rate,
        context.momentum,
        parameters,
        weight_decay=context.weight_decay,
        grad_clip=context.grad_clip,
        use_multi_tensor=context.multi_tensor,
    )


def _adamw(parameters: Sequence[Any], context: OptimizerContext, params: AdamWParams) -> Any:
    """Adam with decoupled weight decay (Loshchilov and Hutter, arXiv:1711.05101)."""
    import paddle

    return paddle.optimizer.AdamW(
        context.learning_rate,
        params.beta1,
        params.beta2,
        params.epsilon,
        parameters,
        weight_decay=context.weight_decay,
        apply_decay_param_fun=_decays(parameters),
        grad_clip=context.grad_clip,
    )


def _decays(parameters: Sequence[Any]) -> Callable[[str], bool]:
    """Whether a parameter, by Paddle's name, decays: not where it has a regularizer of its own, as BatchNorm has."""
    exempt = {parameter.name for parameter in parameters if parameter.regularizer is not None}
    return lambda name: name not in exempt


OPTIMIZERS = Registry("optimizers", OptimizerSpec, KEY)
_RULES = "paddlex_feat.training.classifier.row_rules"
OPTIMIZERS.add(OptimizerSpec(name="momentum", build=_momentum, rows=f"{_RULES}:momentum"))
OPTIMIZERS.add(OptimizerSpec(name="adamw", build=_adamw, params=AdamWParams, rows=f"{_RULES}:adamw"))
