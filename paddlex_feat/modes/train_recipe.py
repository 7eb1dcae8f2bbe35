"""Train.recipe=auto: look at the data, and choose what follows from it, each with its reason in the log."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from paddlex_feat.config import load as config_load
from paddlex_feat.config.auto_recipe import KEY, MEASURED
from paddlex_feat.config.schema import Config
from paddlex_feat.data.readers import require_lists
from paddlex_feat.models.registry import find_backbone
from paddlex_feat.runtime.gpus import expects_gpu

log = logging.getLogger(__name__)
SIZES = (224, 192, 160, 128)  # px; features of larger images are better, whatever the size of the files
# Images of 224 px that some five minutes on two processors train, by backbone, and of another one.
CPU_IMAGES = {"EfficientNet_Lite0": 3000, "PPLCNetV2_base_ShiTu": 2000}
CPU_IMAGES_OF_OTHERS = 1000
LEAST_EPOCHS, MOST_EPOCHS = 3, 6
PROBED_IMAGES = 6000  # features that the linear probe sees in some seconds
CHEAP_EVALUATION = 1000  # images that a CPU evaluates in some seconds
SCRATCH_SIZE = 64  # px
SCRATCH_IMAGES = 25_000  # of that size, which some five minutes on two processors train
MOST_SCRATCH_EPOCHS = 120
FEW_IMAGES = 1000
RATE_OF_A_CLASS, LEAST_RATE, MOST_RATE = 5e-6, 1e-4, 1e-3  # of AdamW
Choice = dict[str, tuple[Any, str]]


@dataclass(frozen=True)
class Facts:
    """What the choice depends on.

    Attributes:
        images: of train.txt.
        classes: of train.txt.
        per_class: median number of images of a class.
        evaluated: images of gallery and query.
        on_gpu: whether a GPU trains.
        backbone: name of the network.
        size: the input size in px, if it is given or the network takes no other; None: to be chosen.
        from_weights: whether training starts from weights.
    """

    images: int
    classes: int
    per_class: int
    evaluated: int
    on_gpu: bool
    backbone: str
    size: int | None
    from_weights: bool


def choose(facts: Facts) -> Choice:
    """Value and reason of each key of MEASURED."""
    return _from_weights(facts) if facts.from_weights else _from_scratch(facts)


def _from_weights(facts: Facts) -> Choice:
    size, why_size = _size(facts)
    epochs, why_epochs = _epochs(facts, size)
    rate = min(MOST_RATE, max(LEAST_RATE, RATE_OF_A_CLASS * facts.classes))
    large = facts.on_gpu
    return {
        "input_size": (size, why_size),
        "batch_size": (64 if large else 32, "enough classes in each" if large else "more steps, and less memory"),
        "samples_per_class": _samples_per_class(facts),
        "epochs_iters": (epochs, why_epochs),
        "learning_rate": (rate, "the more classes, the more there is to learn and the less to forget"),
        "probe_epochs": (_probe_epochs(facts), "the head starts at class means already"),
        "eval_interval": _eval_interval(facts, epochs, 1),
        "adapt": (["start", "end"], "linear maps of the features, each taken only where it is measured to be better"),
        "average": _average(facts, ["last", "start"]),
    }


def _from_scratch(facts: Facts) -> Choice:
    few = facts.images < FEW_IMAGES
    size = facts.size or (224 if facts.on_gpu else SCRATCH_SIZE)
    most = float("inf") if facts.on_gpu else SCRATCH_IMAGES * (SCRATCH_SIZE / size) ** 2 / facts.images
    epochs = int(min(MOST_SCRATCH_EPOCHS, max(LEAST_EPOCHS, most)))
    return {
        "input_size": (size, "random weights have to see many images, so that they are small on a CPU"),
        "batch_size": (16 if few else 64, "few images give few steps" if few else "statistics of many images"),
        "samples_per_class": _samples_per_class(facts),
        "epochs_iters": (epochs, "random weights need many" if facts.on_gpu else "some minutes on a CPU"),
        "learning_rate": (0.01, "that of the model's recipe"),
        "probe_epochs": (_probe_epochs(facts), "not used: random weights have no features to probe"),
        "eval_interval": _eval_interval(facts, epochs, 10),
        "adapt": (["end"], "a linear map of the trained features, taken only where it is measured to be better"),
        "average": _average(facts, ["last"]),
    }


def _samples_per_class(facts: Facts) -> tuple[int, str]:
    return min(4, max(2, facts.per_class)), f"classes have {facts.per_class} images"


def _probe_epochs(facts: Facts) -> int:
    return max(3, min(30, PROBED_IMAGES // facts.images))


def _eval_interval(facts: Facts, epochs: int, usual: int) -> tuple[int, str]:
    """`usual` where that costs little; else the end and at most one evaluation before."""
    cheap = facts.on_gpu or facts.evaluated <= CHEAP_EVALUATION
    return (min(usual, epochs), "cheap") if cheap else (max(usual, -(-epochs // 2)), _costly(facts))


def _average(facts: Facts, usual: list[str]) -> tuple[list[str], str]:
    cheap = facts.on_gpu or facts.evaluated <= CHEAP_EVALUATION
    return (usual, "the best is taken if it is better") if cheap else ([], _costly(facts))


def _costly(facts: Facts) -> str:
    return f"each evaluation computes {facts.evaluated} images"


def _size(facts: Facts) -> tuple[int, str]:
    if facts.size is not None:
        return facts.size, "the network takes no other size"
    if facts.on_gpu:
        return SIZES[0], "the size that the start was trained at"
    for size in SIZES:
        if LEAST_EPOCHS * facts.images * (size / 224) ** 2 <= _images_at_224(facts):
            return size, f"the largest of which {LEAST_EPOCHS} epochs take some minutes on a CPU"
    return SIZES[-1], "more would take too long on a CPU"


def _epochs(facts: Facts, size: int) -> tuple[int, str]:
    most = _images_at_224(facts) / (facts.images * (size / 224) ** 2)
    epochs = int(min(MOST_EPOCHS, max(LEAST_EPOCHS, most)))
    return epochs, "fine-tuning changes little" if epochs == MOST_EPOCHS else "some minutes on a CPU"


def _images_at_224(facts: Facts) -> float:
    """Images of 224 px that a run may train; on a GPU as many as it likes."""
    return float("inf") if facts.on_gpu else CPU_IMAGES.get(facts.backbone, CPU_IMAGES_OF_OTHERS)


def settle(config: Config, resumed: Path | None) -> Config:
    """Return the configuration with what Train.recipe=auto chooses; itself if that is off or has chosen before.

    Args:
        config: the configuration, validated.
        resumed: the checkpoint of the run that goes on, whose own choice is taken.

    Raises DatasetError.
    """
    settings = config.Train
    open_keys = [name for name in MEASURED if name not in settings.recipe_keeps]
    if settings.recipe != "auto" or not open_keys:
        return config
    chosen = _recorded(resumed, open_keys) if resumed else None
    if chosen is None:
        facts = look(config)
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
    return Config.model_validate(raw)


def _recorded(resumed: Path, names: list[str]) -> dict[str, Any] | None:
    """The values that the resumed run has chosen, from its config.yaml; None where it chose none."""
    file = resumed.parent.parent / "config.yaml"
    if not file.is_file():
        return None
    former = config_load.load(str(file), [], usable=False)[0].Train
    return {name: getattr(former, name) for name in names} if former.recipe == "auto" else None


def look(config: Config) -> Facts:
    """What the data and the configuration tell before Paddle is imported. Raises DatasetError."""
    lists = require_lists(config.Global.dataset_dir, refuse_outside=config.CheckDataset.outside == "refuse")
    _, counts = np.unique(lists["train"].labels, return_counts=True)
    fixed = "input_size" in config.Train.recipe_keeps or find_backbone(config.Model.backbone).fixed_size
    return Facts(
        images=int(counts.sum()),
        classes=len(counts),
        per_class=int(np.median(counts)),
        evaluated=len({*lists["gallery"].paths, *lists["query"].paths}),
        on_gpu=expects_gpu(config.Global.device),
        backbone=config.Model.backbone,
        size=config.Train.input_size if fixed else None,
        from_weights=bool(config.Train.pretrain_weight_path),
    )
