"""Train.recipe=auto: the keys that it sets, as plain data, and which of them the user has set.

Precedence, lowest first: schema defaults, the model's recipe, these, the YAML file, `-o`. Where `-o` asks for the
recipe, a file's own values of these keys are ignored: the file was written for another recipe.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

KEY = "Train.recipe"
# What a look at the data decides (`modes.train_recipe`).
MEASURED = (
    "input_size",
    "eval_size",
    "batch_size",
    "samples_per_class",
    "epochs_iters",
    "learning_rate",
    "layer_decay",
    "probe_epochs",
    "eval_interval",
    "adapt",
    "average",
)

# From weights: good weights should change little, so the head starts at class means and is trained alone first.
FROM_WEIGHTS: dict[str, Any] = {
    "Model": {"head": "cosface", "head_params": {"margin": 0.2, "scale": 24}},
    "Train": {
        "method": "probe_then_full",
        "probe_learning_rate": 0.001,
        "init_head": "class_means",
        "class_sampling": "uniform",
        "optimizer": "adamw",
        "head_lr_mult": 10,
        "weight_decay": 0.02,
        "no_decay": "vectors",
        "warmup_steps": 1,
        "bn_frozen": True,
        "augment": {
            "crop": "random_resized_crop",
            "scale": [0.5, 1.0],
            "rotation_prob": 0.5,
            "rotation_degrees": 15.0,
            "brightness": 0.2,
            "contrast": 0.2,
        },
        "loss": {
            "terms": [
                {"name": "cross_entropy", "label_smoothing": 0.1},
                {"name": "supcon", "weight": 0.5, "temperature": 0.1},
            ]
        },
    },
}
# From random weights: mild augmentation, for there is much to learn, and plain SGD, with which features of unseen
# classes came out better than with AdamW.
FROM_SCRATCH: dict[str, Any] = {
    "Model": {"head": "cosface", "head_params": {"margin": 0.05, "scale": 16}},
    "Train": {
        "optimizer": "momentum",
        "head_lr_mult": 10,
        "weight_decay": 1e-5,
        "no_decay": "recipe",
        "warmup_steps": 3,
        "augment": {"pad": 3, "rotation_prob": 0.0, "brightness": 0.2, "contrast": 0.2},
        "loss": {
            "terms": [
                {"name": "cross_entropy", "label_smoothing": 0.1},
                {"name": "supcon", "temperature": 0.1},
            ]
        },
    },
}
GOVERNED = frozenset(
    f"{section}.{name}" for table in (FROM_WEIGHTS, FROM_SCRATCH) for section, keys in table.items() for name in keys
) | {f"Train.{name}" for name in MEASURED}


def strip_recipe_keys(raw: dict[str, Any]) -> list[str]:
    """Remove the keys that the recipe sets from the sections of a file, in place; return their names."""
    found = []
    for dotted in sorted(GOVERNED):
        name, section = dotted.partition(".")[2], raw.get(dotted.partition(".")[0])
        if isinstance(section, dict) and name in section:
            del section[name]
            found.append(dotted)
    if isinstance(raw.get("Train"), dict):
        raw["Train"].pop("recipe_keeps", None)  # the record of an earlier choice
    return found


def wants_recipe(raw: Mapping[str, Any]) -> bool:
    """Whether these sections ask for the recipe."""
    train = raw.get("Train")
    return isinstance(train, dict) and train.get("recipe") == "auto"


def recipe_keys(raw: Mapping[str, Any], pretrained: Any) -> dict[str, Any]:
    """The keys that the recipe sets before it looks at the data, and the record of those that the user has set.

    Args:
        raw: the sections of the user.
        pretrained: Train.pretrain_weight_path after -o, the file and the model's recipe; None: from scratch.
    """
    keys = copy.deepcopy(FROM_WEIGHTS if pretrained else FROM_SCRATCH)
    model, train = raw.get("Model"), raw["Train"]
    if isinstance(model, dict) and "head" in model:  # the recipe's parameters are those of another head
        keys.get("Model", {}).pop("head_params", None)
    loss = train.get("loss")
    if isinstance(loss, dict) and loss.keys() - {"terms"}:  # keys that have no effect beside terms
        keys["Train"]["loss"].pop("terms", None)
    keys["Train"]["recipe_keeps"] = [name for name in MEASURED if name in train]
    return keys
