"""What an inference directory says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import yaml

from paddlex_feat import yaml_text
from paddlex_feat.errors import WeightsError
from paddlex_feat.pipeline.preprocess import Preprocess

PREFIX = "inference"


@dataclass(frozen=True)
class ModelInfo:
    """What inference.yml says."""

    name: str
    preprocess: Preprocess
    normalise_features: bool


def read_info(folder: Path) -> ModelInfo:
    """Read `inference.yml`. Raises WeightsError if it is missing or not understood."""
    path = folder / f"{PREFIX}.yml"
    try:
        content, _ = yaml_text.read(yaml_text.read_text(path))
        name = content["Global"]["model_name"]
        if not isinstance(name, str):
            raise TypeError("model_name is no text")
        ops = content["PreProcess"]["transform_ops"]
        normalise = "NormalizeFeatures" in (content.get("PostProcess") or {})
    except OSError as error:
        raise WeightsError(
            f"No inference model: {PREFIX}.yml cannot be read ({error.strerror}).",
            where=str(folder),
            fix="Give the folder with inference.json, inference.pdiparams and inference.yml; "
            "training writes it to <output>/best_model/inference, and mode export makes one. "
            "Where an export was killed, run it again.",
        ) from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"The file is not understood ({type(error).__name__}: {error}).", where=str(path), fix="Export again."
        ) from error
    return ModelInfo(name, Preprocess.from_ops(ops, str(path)), normalise)
