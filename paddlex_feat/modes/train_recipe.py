"""Train.recipe=auto: look at the data, and choose what follows from it, each with its reason in the log."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from paddlex_feat.config import load as config_load
from paddlex_feat.config.auto_recipe import KEY, MEASURED
from paddlex_feat.config.problems import listed
from paddlex_feat.config.schema import Config
from paddlex_feat.data.lists.holdout import hold_out
from paddlex_feat.errors import ConfigError
from paddlex_feat.models.registry import find_backbone
from paddlex_feat.modes.data import read_lists
from paddlex_feat.modes.parts import network_spec
from paddlex_feat.modes.train_budget import (
    FEW_IMAGES,
    MAX_SCRATCH_EPOCHS,
    MIN_EPOCHS,
    SCRATCH_SIZE,
    SIZES,
    SMALL_SCRATCH_SIZE,
    Budget,
)
from paddlex_feat.runtime.cpu import has_avx512
from paddlex_feat.runtime.gpus import expects_gpu

log = logging.getLogger(__name__)
PROBED_IMAGES = 6000  # features that the linear probe sees in some seconds
RATE_OF_A_CLASS, MIN_RATE, MAX_RATE = 5e-6, 1e-4, 1e-3  # of AdamW
TRANSFORMER = "CLIP_vit"  # whose early layers should change least, and all layers less than those of convolutions
TRANSFORMER_RATE, TRANSFORMER_DECAY = 0.1, 0.75
Choice = dict[str, tuple[Any, str]]


@dataclass(frozen=True)
class Facts:
    """What the choice depends on.

    Attributes:
        images: of train.txt.
        classes: of train.txt.
        per_class: median number of images of a class.
        evaluated: images that an evaluation computes: of gallery and query, or those that are held out.
        on_gpu: whether a GPU trains.
        backbone: name of the network.
        size: the input size in px, if the user sets it or the network takes no other; None: to be chosen.
        given: values of Train's keys that the user sets.
        takes_map: whether the network ends in a layer that can take a linear map.
        measures_start: whether the run measures its start, without which a map at the start cannot be judged.
        from_weights: whether training starts from weights.
        minutes: Train.recipe_minutes.
        avx512: whether the processors have AVX-512, which makes training faster.
        stride: what sizes must be a multiple of, in px.
    """

    images: int
    classes: int
    per_class: int
    evaluated: int
    on_gpu: bool
    backbone: str
    size: int | None
    from_weights: bool
    minutes: float
    takes_map: bool = True
    measures_start: bool = True
    avx512: bool = False
    stride: int = 1
    given: Mapping[str, Any] = field(default_factory=dict)

    @property
    def budget(self) -> Budget:
        """What the training may cost."""
        return Budget(
            self.images,
            self.evaluated,
            self.minutes,
            self.backbone,
            self.on_gpu,
            self.avx512,
            self.stride,
            self.given.get("epochs_iters"),
        )


def choose(facts: Facts) -> Choice:
    """Value and reason of each key of MEASURED."""
    return _from_weights(facts) if facts.from_weights else _from_scratch(facts)


def _from_weights(facts: Facts) -> Choice:
    size, why_size = _size(facts)
    epochs = facts.budget.epochs(size)
    batch, why_batch = (64, "enough classes in each")
    if facts.backbone == TRANSFORMER or (facts.images < FEW_IMAGES and not facts.on_gpu):
        batch, why_batch = (32, "more steps, and less memory")
    rate = min(MAX_RATE, max(MIN_RATE, RATE_OF_A_CLASS * facts.classes))
    why_rate, decay = "the more classes, the more there is to learn and the less to forget", None
    if facts.backbone == TRANSFORMER:
        rate, decay = rate * TRANSFORMER_RATE, TRANSFORMER_DECAY
        why_rate += "; a tenth of it for a transformer"
    return {
        "input_size": (size, why_size),
        "eval_size": _eval_size(facts, size),
        **_batches(facts, batch, why_batch),
        "epochs_iters": (epochs, _why_epochs(facts, epochs, facts.budget.most_epochs)),
        "learning_rate": (rate, why_rate),
        "layer_decay": (decay, "early layers of a transformer change least" if decay else "convolutions learn alike"),
        "probe_epochs": (_probe_epochs(facts), f"some seconds for {facts.images} images"),
        "eval_interval": _eval_interval(facts, 1, epochs),
        "adapt": _adapt(facts, ["start", "end"] if facts.measures_start else ["end"]),
        "average": _average(facts, ["last", "start"]),
    }


def _from_scratch(facts: Facts) -> Choice:
    few = facts.images < FEW_IMAGES
    size, why_size = facts.size, "the network takes no other size"
    if size is None:
        size = facts.budget.fit(224 if facts.on_gpu else SCRATCH_SIZE if few else SMALL_SCRATCH_SIZE)
        why_size = "the usual one" if facts.on_gpu else "random weights have to see many images: small ones"
    batch, why_batch = (16, "few images give few steps") if few else (32, "more images in the same time")
    if facts.on_gpu:
        batch, why_batch = 64, "a GPU takes as long for fewer"
    epochs = facts.budget.scratch_epochs(size)
    return {
        "input_size": (size, why_size),
        "eval_size": (None, "that of training"),
        **_batches(facts, batch, why_batch),
        "epochs_iters": (epochs, _why_epochs(facts, epochs, MAX_SCRATCH_EPOCHS)),
        "learning_rate": (0.01, "a rate of plain SGD for random weights"),
        "layer_decay": (None, "all layers have as much to learn"),
        "probe_epochs": (_probe_epochs(facts), "without effect: random weights are not probed"),
        "eval_interval": _eval_interval(facts, max(1, epochs // 10), -(-epochs // 2)),
        "adapt": _adapt(facts, ["end"]),
        "average": _average(facts, ["last"]),
    }


def _batches(facts: Facts, usual: int, reason: str) -> Choice:
    """K images of each of P classes: no more classes than there are."""
    batch, per_class = facts.given.get("batch_size"), min(4, max(2, facts.per_class))
    if batch:
        per_class = next((k for k in range(per_class, 1, -1) if batch % k == 0), per_class)
    per_class = facts.given.get("samples_per_class", per_class) or 1  # 1: shuffled, without classes
    batch = usual
    if per_class > 1:
        batch = max(1, min(usual // per_class, facts.classes)) * per_class
        reason = reason if batch == usual else f"whole classes of {per_class} images, of {facts.classes} in all"
    return {
        "batch_size": (batch, reason),
        "samples_per_class": (per_class, f"classes have {facts.per_class} images"),
    }


def _adapt(facts: Facts, usual: list[str]) -> tuple[list[str], str]:
    if not facts.takes_map:
        return [], "the network does not end in a layer that could take a map"
    return usual, "linear maps of the features, each applied only where it is measured to be better"


def _why_epochs(facts: Facts, epochs: int, most: int) -> str:
    if epochs == most:
        return "more would change little"
    if epochs == MIN_EPOCHS:
        return "fewer would teach too little; they may take longer than Train.recipe_minutes"
    return _minutes(facts)


def _probe_epochs(facts: Facts) -> int:
    return max(3, min(30, PROBED_IMAGES // facts.images))


def _eval_interval(facts: Facts, usual: int, seldom: int) -> tuple[int, str]:
    if facts.budget.evaluates_cheaply:
        return usual, f"{facts.evaluated} images are quickly evaluated"
    return seldom, _costly(facts)


def _average(facts: Facts, usual: list[str]) -> tuple[list[str], str]:
    cheap = facts.budget.evaluates_cheaply
    return (usual, "the best is taken if it is better") if cheap else ([], _costly(facts))


def _costly(facts: Facts) -> str:
    return f"each evaluation computes {facts.evaluated} images"


def _size(facts: Facts) -> tuple[int, str]:
    if facts.size is not None:
        return facts.size, "the network takes no other size"
    if facts.on_gpu:
        return facts.budget.fit(SIZES[0]), "the size that the start was trained at"
    size = facts.budget.size()
    why = f"the largest of which enough epochs fit in {facts.minutes:g} minutes"
    return size, why if size > facts.budget.fit(SIZES[-1]) else "more would take too long on a CPU"


def _eval_size(facts: Facts, size: int) -> tuple[int | None, str]:
    larger = size if facts.size is not None or facts.on_gpu else facts.budget.eval_size(size)
    if larger == size:
        return None, "that of training"
    return larger, "whole images look smaller than the crops of training"


def _minutes(facts: Facts) -> str:
    return f"about {facts.minutes:g} minutes on two processors (Train.recipe_minutes)"


def apply_auto_recipe(config: Config, resumed: Path | None) -> Config:
    """Return the configuration with what Train.recipe=auto chooses; itself if that is off or has chosen before.

    Args:
        config: the configuration, validated.
        resumed: the checkpoint of the run that goes on, whose own choice is taken.

    Raises:
        DatasetError: the lists cannot be read.
        ConfigError: what it chooses does not go with the user's own keys.
    """
    settings = config.Train
    open_keys = [name for name in MEASURED if name not in settings.recipe_keeps]
    if settings.recipe != "auto" or not open_keys:
        return config
    chosen = _recorded(resumed, open_keys, settings.recipe_minutes) if resumed else None
    if chosen is None:
        facts = inspect_data(config)
        log.info(
            "%s=auto: %d images, %d classes, %d images a class.", KEY, facts.images, facts.classes, facts.per_class
        )
        chosen = {}
        for name, (value, reason) in choose(facts).items():
            if name in open_keys:
                chosen[name] = value
                log.info("  Train.%s=%s: %s", name, value, reason)
            else:
                log.info("  Train.%s=%s, as given", name, getattr(settings, name))
    return _with(config, chosen)


def _with(config: Config, chosen: dict[str, Any]) -> Config:
    raw = config.model_dump()
    raw["Train"] |= {**chosen, "recipe_keeps": list(MEASURED)}
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        rows, _ = listed(error, {}, {})
        raise ConfigError(
            f"What {KEY}=auto chooses does not go with keys that are set: {'; '.join(rows)}",
            where="Train",
            fix="Set the key that the recipe chose too, or leave out the other one.",
            code="recipe-conflict",
        ) from error


def _recorded(resumed: Path, names: list[str], minutes: float) -> dict[str, Any] | None:
    """The values of the resumed run, whether chosen or given, from its config.yaml; None where there is none."""
    file = resumed.parent.parent / "config.yaml"
    if not file.is_file():
        return None
    former = config_load.load(str(file), [], usable=False)[0].Train
    if former.recipe == "auto" and former.recipe_minutes != minutes:
        log.warning(
            "Train.recipe_minutes has no effect on a run that goes on: it keeps what was chosen for %g minutes. "
            "Train.epochs_iters changes its length.",
            former.recipe_minutes,
        )
    return {name: getattr(former, name) for name in names}


def inspect_data(config: Config) -> Facts:
    """What the data and the configuration tell before Paddle is imported. Raises DatasetError."""
    settings = config.Train
    lists = read_lists(config)
    trained, evaluated = lists["train"], len({*lists["gallery"].paths, *lists["query"].paths})
    if settings.validation == "split":
        trained, held_out = hold_out(trained, settings.validation_percent, settings.validation_by, settings.seed)
        evaluated = len(held_out)
    _, counts = np.unique(trained.labels, return_counts=True)
    backbone = find_backbone(config.Model.backbone)
    fixed = "input_size" in settings.recipe_keeps or backbone.fixed_size
    return Facts(
        images=int(counts.sum()),
        classes=len(counts),
        per_class=int(np.median(counts)),
        evaluated=evaluated,
        on_gpu=expects_gpu(config.Global.device),
        backbone=config.Model.backbone,
        size=settings.input_size if fixed else None,
        from_weights=bool(settings.pretrain_weight_path),
        minutes=settings.recipe_minutes,
        avx512=has_avx512(),
        stride=backbone.stride_of(network_spec(config)),
        given={name: getattr(settings, name) for name in settings.recipe_keeps},
        measures_start=settings.eval_start and settings.amp != "O2",
        takes_map=config.Model.neck == "linear" or config.Model.backbone == "PPLCNetV2_base_ShiTu",
    )
