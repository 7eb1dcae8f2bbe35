"""Losses by name, and the terms that a configuration asks for. Importing this room does not import Paddle.

`LOSSES` and its entries' class `LossSpec`   the registry; docs/extending.md shows how to add a loss
`read_terms`, `LossTerm`, `LossContext`      what a configuration asks for, and what a loss is built with
combined                                     `CombinedLoss`, the weighted sum of any number of terms
label_smoothing, triplet_angular_margin      the losses of the recipes
pairs, proxy_anchor                          further losses on features; their keys: params
memory                                       `FeatureMemory`, features of past batches
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from paddlex_feat.config.base import Section, key
from paddlex_feat.config.parts import Builder, NoParams, Problem, read_params
from paddlex_feat.config.registry import Registry
from paddlex_feat.errors import ConfigError, FeatError
from paddlex_feat.losses.params import (
    CircleParams,
    MultiSimilarityParams,
    ProxyAnchorParams,
    SupConParams,
    TripletBatchHardParams,
)

KEY = "Train.loss.terms"
Needs = Literal["logits", "features"]


@dataclass(frozen=True)
class LossContext:
    """What a loss may need to know of the training.

    Attributes:
        num_classes: width of the classifier, number of class indices.
        embedding_size: length of a feature.
    """

    num_classes: int
    embedding_size: int


@dataclass(frozen=True)
class LossSpec:
    """A loss that configurations can name.

    The builder is called as `make(params, context)` with an instance of `params` and a LossContext, and returns a
    `paddle.nn.Layer` whose `forward(x, labels)` returns a float32 scalar (shape []) of x, float32 [N, C] or [N, D],
    and labels, int64 [N]. The layer may have parameters: each must take part in every call. They are trained by the
    optimizer of the network, averaged over devices, and saved in checkpoints beside the network's; exports and the
    moving average leave them out. A layer that is also a `config.parts.HasClassVectors` can be started at class means.

    Attributes:
        name: in `Train.loss.terms`, a word.
        term: in logs and metrics.jsonl, a word that ends in "Loss".
        needs: what x is: the "logits" of the classifier [N, C], or the "features" [N, D], not normalized.
        make: the builder.
        params: the loss's own keys.
        mines_pairs: whether it compares the images of a batch, which then needs several of each class.
        takes_references: whether `forward(x, labels, references)` compares them with images of past batches as well,
            given as `losses.memory.References`; only asked for by `Train.memory_batches`.
    """

    name: str
    term: str
    needs: Needs
    make: Builder
    params: type[Section] = NoParams
    mines_pairs: bool = False
    takes_references: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\w+", self.name):
            raise ValueError(f"the name of a loss is one word, not {self.name!r}")
        if not re.fullmatch(r"\w+Loss", self.term):
            raise ValueError(f"the name of a loss in logs is one word that ends in Loss, not {self.term!r}")
        if self.needs not in get_args(Needs):
            raise ValueError(f"a loss needs {' or '.join(get_args(Needs))}, not {self.needs!r}")
        taken = set(self.params.model_fields) & set(TermKeys.model_fields)
        if taken:
            raise ValueError(f"keys of the loss {self.name}: {', '.join(sorted(taken))} are those of every term")


class TermKeys(Section):
    """Keys of every entry of Train.loss.terms."""

    name: str = key(..., "Which loss.")
    weight: float = key(1.0, "Weight in the sum; 0: neither computed nor logged.", ge=0)
    lr_mult: float = key(1.0, "Factor on the learning rate of the loss's own parameters.", ge=0)


@dataclass(frozen=True)
class LossTerm:
    """One term of the total loss.

    Attributes:
        spec: the loss.
        weight: factor in the sum.
        lr_mult: factor on the learning rate of its own parameters.
        params: its own keys, an instance of `spec.params`.
    """

    spec: LossSpec
    weight: float
    lr_mult: float
    params: Section


class CrossEntropyParams(Section):
    """Keys of cross_entropy."""

    label_smoothing: float = key(0.1, "Probability mass spread over all classes.", ge=0, lt=1)


class TripletAngularMarginParams(Section):
    """Keys of triplet_angular_margin."""

    margin: float = key(0.5, "Margin between hardest negative and hardest positive.", "cosine", ge=0)
    absolute_weight: float = key(0.1, "Weight of its absolute terms.", ge=0)
    absolute_positive: float = key(0.8, "Least similarity that a positive should have.", "cosine", ge=-1, le=1)
    absolute_negative: float = key(0.4, "Greatest similarity that a negative may have.", "cosine", ge=-1, le=1)


LOSSES = Registry("losses", LossSpec, KEY)
LOSSES.add(
    LossSpec(
        "cross_entropy", "CELoss", "logits", "paddlex_feat.losses.label_smoothing:cross_entropy", CrossEntropyParams
    )
)
LOSSES.add(
    LossSpec(
        "triplet_angular_margin",
        "TripletAngularMarginLoss",
        "features",
        "paddlex_feat.losses.triplet_angular_margin:triplet_angular_margin",
        TripletAngularMarginParams,
        mines_pairs=True,
        takes_references=True,
    )
)
_PAIRS = "paddlex_feat.losses.pairs:"
LOSSES.add(
    LossSpec(
        "supcon", "SupConLoss", "features", _PAIRS + "supcon", SupConParams, mines_pairs=True, takes_references=True
    )
)
LOSSES.add(
    LossSpec(
        "multi_similarity",
        "MultiSimilarityLoss",
        "features",
        _PAIRS + "multi_similarity",
        MultiSimilarityParams,
        mines_pairs=True,
        takes_references=True,
    )
)
LOSSES.add(
    LossSpec(
        "circle", "CircleLoss", "features", _PAIRS + "circle", CircleParams, mines_pairs=True, takes_references=True
    )
)
LOSSES.add(
    LossSpec(
        "triplet_batch_hard",
        "TripletBatchHardLoss",
        "features",
        _PAIRS + "triplet_batch_hard",
        TripletBatchHardParams,
        mines_pairs=True,
        takes_references=True,
    )
)
LOSSES.add(
    LossSpec(
        "proxy_anchor",
        "ProxyAnchorLoss",
        "features",
        "paddlex_feat.losses.proxy_anchor:proxy_anchor",
        ProxyAnchorParams,
    )
)


def read_terms(items: Sequence[Mapping[str, Any]], where: str = KEY) -> list[LossTerm]:
    """Make terms of the mappings in `Train.loss.terms`.

    Raises:
        ConfigError: with every problem.
    """
    terms, problems = find_terms(items, where)
    if problems:
        raise ConfigError(
            "The terms of the loss cannot be used:" + "".join(f"\n    {p.key}: {p.message}" for p in problems),
            where=where,
            fix="Correct the keys named.",
            code="loss-terms",
        )
    return terms


def find_terms(items: Sequence[Mapping[str, Any]], where: str = KEY) -> tuple[list[LossTerm], list[Problem]]:
    """As `read_terms`: the valid terms, and the problems of the others."""
    terms: list[LossTerm] = []
    problems: list[Problem] = []
    for number, item in enumerate(items):
        place = f"{where}.{number}"
        common = {name: value for name, value in item.items() if name in TermKeys.model_fields}
        keys, wrong = read_params(TermKeys, common, place)
        problems += wrong
        try:
            spec = LOSSES.get(common["name"], f"{place}.name") if isinstance(common.get("name"), str) else None
        except FeatError as error:  # an unknown name, or a package that cannot be imported
            problems.append(Problem(f"{place}.name", f"{error.what} {error.fix}"))
            continue
        if spec is None:
            continue
        own = {name: value for name, value in item.items() if name not in common}
        params, wrong = read_params(spec.params, own, place, TermKeys.model_fields)
        problems += wrong
        same = next((t.spec.name for t in terms if t.spec.term == spec.term), None)
        if same is not None:
            both = f"{same} and {spec.name} are both logged as {spec.term}"
            problems.append(Problem(f"{place}.name", f"{spec.name} is there twice" if same == spec.name else both))
        elif isinstance(keys, TermKeys) and params is not None:
            terms.append(LossTerm(spec, keys.weight, keys.lr_mult, params))
    if not problems and not any(term.weight for term in terms):
        problems.append(Problem(where, "no term has a weight above 0, so nothing would be learnt"))
    return terms, problems


def memory_problem(terms: Sequence[LossTerm]) -> str | None:
    """What keeps these terms from being compared with past batches; None if nothing does.

    Every term of a weight above 0 that compares the images of a batch must take references, and there must be one.
    """
    used = [term.spec for term in terms if term.weight]
    wrong = [spec.name for spec in used if spec.mines_pairs and not spec.takes_references]
    if not wrong and any(spec.takes_references for spec in used):
        return None
    fit = ", ".join(sorted(spec.name for spec in LOSSES.added() if spec.takes_references))
    what = f"{wrong[0]} cannot compare a batch with past ones" if wrong else "no loss compares images"
    return f"{what}; of {KEY}, these can: {fit}. Use one of them, or 0"
