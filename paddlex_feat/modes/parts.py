"""The parts that a configuration names: losses, backbone, head, optimizer. Works without Paddle."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from paddlex_feat.config.base import Section
from paddlex_feat.config.parts import Problem, read_params
from paddlex_feat.config.recipes import RECIPES
from paddlex_feat.config.schema import Config
from paddlex_feat.config.train_schema import LossSection
from paddlex_feat.errors import FeatError
from paddlex_feat.losses import LossTerm, find_terms, memory_problem, read_terms
from paddlex_feat.models.registry import BACKBONE_KEY, BACKBONES, HEAD_KEY, HEADS, find_backbone
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.training.optimizers import KEY as OPTIMIZER_KEY
from paddlex_feat.training.optimizers import OPTIMIZERS

_BUILDS_NETWORKS = ("train", "evaluate", "export")


class _HasParams(Protocol):
    @property
    def params(self) -> type[Section]: ...


S = TypeVar("S", bound=_HasParams)


def network_spec(config: Config) -> NetworkSpec:
    """The network that the configuration describes."""
    return NetworkSpec(**config.Model.model_dump(), input_size=config.Train.input_size)


def keeps_rounding(config: Config) -> bool:
    """Whether a training on a CPU rounds as earlier versions did for official recipes, at 2/3 of the rate."""
    return config.Train.onednn_conv is not True


def loss_terms(loss: LossSection) -> list[LossTerm]:
    """The terms of the loss; without `terms` those of the section's other keys. Raises ConfigError."""
    return read_terms(_terms(loss))


def _terms(loss: LossSection) -> list[dict[str, Any]]:
    if loss.terms is not None:
        return loss.terms
    return [
        {"name": "cross_entropy", "weight": loss.ce_weight, "label_smoothing": loss.label_smoothing},
        {
            "name": "triplet_angular_margin",
            "weight": loss.triplet_weight,
            "margin": loss.triplet_margin,
            "absolute_weight": loss.absolute_weight,
            "absolute_positive": loss.absolute_positive,
            "absolute_negative": loss.absolute_negative,
        },
    ]


def unused_settings(config: Config) -> list[str]:
    """Settings of the training other than the model's defaults that have no effect beside others, a sentence each."""
    train, usual = config.Train, Config.model_validate(RECIPES[config.Global.model]).Train
    sentences = []
    if config.Export.dimension is not None:
        sentences.append(
            "Export.dimension has no effect on the model of a full training: mode export cuts its features."
        )
    if train.init_backbone != "recipe" and train.pretrain_weight_path:
        sentences.append("Train.init_backbone has no effect, for training starts from weights.")
    if train.loss.terms is not None:
        names = [name for name in LossSection.model_fields if name != "terms"]
        changed = [f"Train.loss.{name}" for name in names if getattr(train.loss, name) != getattr(usual.loss, name)]
        if changed:
            verb = "has" if len(changed) == 1 else "have"
            sentences.append(f"{', '.join(changed)} {verb} no effect, for Train.loss.terms is set.")
    if train.optimizer != "momentum" and train.momentum != usual.momentum:
        unless = "" if train.optimizer == "adamw" else ", unless that reads it"
        sentences.append(f"Train.momentum has no effect with the optimizer {train.optimizer}{unless}.")
    return sentences


def find_problems(config: Config) -> list[Problem]:
    """Find unknown names, unknown or wrong keys of the named parts, and an input size that the backbone cannot take.

    Each mode checks the parts that it builds: weights can be exported without the package of their loss.
    """
    problems: list[Problem] = []
    mode, model, train = config.Global.mode, config.Model, config.Train
    if mode in _BUILDS_NETWORKS or model.backbone in BACKBONES:
        spec = _find(find_backbone, BACKBONE_KEY, model.backbone, "Model.params", model.params, problems)
        problems += _size_problems(config, spec.stride_of(network_spec(config)), spec.fixed_size) if spec else []
        problems += _init_problems(config, spec.inits) if spec and mode == "train" else []
    if mode == "train":
        _find(HEADS.get, HEAD_KEY, model.head, "Model.head_params", model.head_params, problems)
        params = train.optimizer_params
        _find(OPTIMIZERS.get, OPTIMIZER_KEY, train.optimizer, "Train.optimizer_params", params, problems)
        terms, wrong = find_terms(_terms(train.loss))
        problems += wrong
        unfit = memory_problem(terms) if train.memory_batches and not wrong else None
        problems += [Problem("Train.memory_batches", unfit)] if unfit else []
        if model.head_sample is not None and not problems:
            problems += [Problem("Model.head_sample", text) for text in _sampling_problems(config, terms)]
    return problems


def _sampling_problems(config: Config, terms: Sequence[LossTerm]) -> list[str]:
    """Why this training cannot draw the classes of its classifier."""
    train, found = config.Train, []
    if HEADS.get(config.Model.head).scores is None:
        found.append(f"the head {config.Model.head} cannot draw classes; use null, or a head of this package")
    if OPTIMIZERS.get(train.optimizer).rows is None:
        found.append(f"the optimizer {train.optimizer} cannot change some class vectors alone; use momentum or adamw")
    others = [t.spec.name for t in terms if t.weight and t.spec.needs == "logits" and t.spec.name != "cross_entropy"]
    if others:
        found.append(f"the loss {others[0]} needs the logits of all classes; use cross_entropy")
    if train.method in ("probe", "probe_then_full"):
        found.append("a linear probe trains a classifier that is part of the network; use null, or Train.method=full")
    if any(name.partition(".")[0] == "head" for name in train.freeze):
        found.append("class vectors that are drawn are always trained; leave head out of Train.freeze, or use null")
    if train.amp != "OFF" and train.amp_dtype == "float16":
        found.append("steps that float16 skips would leave class vectors ahead; use Train.amp_dtype=bfloat16")
    return found


def _find(
    get: Callable[[str], S], key: str, name: str, params_key: str, params: Mapping[str, Any], problems: list[Problem]
) -> S | None:
    """The entry of a name, if there is one; appends what is wrong with name and keys to `problems`."""
    try:
        spec = get(name)
    except FeatError as error:  # an unknown name, or a package that cannot be imported
        problems.append(Problem(key, f"{error.what} {error.fix}"))
        return None
    problems += read_params(spec.params, params, params_key)[1]
    return spec


def _init_problems(config: Config, known: tuple[str, ...]) -> list[Problem]:
    chosen = config.Train.init_backbone
    if chosen == "recipe" or chosen in known:
        return []
    return [Problem("Train.init_backbone", f"{config.Model.backbone} has no start {chosen}; use recipe")]


def _size_problems(config: Config, stride: int, fixed: bool) -> list[Problem]:
    problems, backbone = [], config.Model.backbone
    for key, size in config.Train.sizes().items():
        nearest = max(stride, round(size / stride) * stride)
        if size % stride:
            message = f"{size} is not a multiple of {stride}, as {backbone} needs; use {nearest}"
            problems.append(Problem(key, message))
        elif fixed and size != config.Train.input_size:
            problems.append(Problem(key, f"{backbone} takes images of one size, Train.input_size; leave this null"))
    return problems
