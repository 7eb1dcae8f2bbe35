"""inference.yml: name, pre-processing and post-processing of an exported model."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import yaml

from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import FeatError, WeightsError
from paddlex_feat.fileio import safe_yaml

PREFIX = "inference"
DIMENSION = "feature_dimension"  # in Global of inference.yml, where Export.dimension was set
GRAPHS = (f"{PREFIX}.json", f"{PREFIX}.pdmodel")


@dataclass(frozen=True)
class ModelInfo:
    """Content of inference.yml.

    Attributes:
        name: of the model.
        preprocess: how images are resized and normalised.
        normalise_features: whether features are divided by their L2 norm.
    """

    name: str
    preprocess: Preprocess
    normalise_features: bool


def read_info(folder: Path) -> ModelInfo:
    """Read `inference.yml`. Raises WeightsError if it is missing, malformed, or asks for unsupported processing."""
    path = folder / f"{PREFIX}.yml"
    try:
        content, _ = safe_yaml.read(safe_yaml.read_text(path))
        name = content["Global"]["model_name"]
        if not isinstance(name, str):
            raise TypeError("model_name is not a text")
        ops = content["PreProcess"]["transform_ops"]
        after = content.get("PostProcess") or {}
        unit = after.get("NormalizeFeatures", False)
        refused = [step for step, options in after.items() if step != "NormalizeFeatures"]
        refused += [] if unit in (None, True, False, {}) else ["NormalizeFeatures with options"]
    except OSError as error:
        meant = models_within(folder)
        raise WeightsError(
            f"No inference model: {PREFIX}.yml cannot be read ({error.strerror}).",
            where=str(folder),
            fix=f"Give {meant[0]}."
            if meant
            else "Give the folder with inference.json, inference.pdiparams and inference.yml; "
            "training writes it to <output>/best_model/inference, and mode export makes one. "
            "If an export was killed, run it again.",
            code="model-info-missing",
        ) from error
    except (yaml.YAMLError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"The file is not a valid inference.yml ({type(error).__name__}: {error}).",
            where=str(path),
            fix="Export again.",
            code="model-info-invalid",
        ) from error
    if refused:
        raise WeightsError(
            f"The model asks for post-processing that is not implemented: {', '.join(map(str, refused))[:200]}.",
            where=f"{path}: PostProcess",
            fix="Use a model of image features; PostProcess is NormalizeFeatures, without options, or absent.",
            code="postprocess-unsupported",
        )
    return ModelInfo(name, Preprocess.from_ops(ops, str(path)), unit is not False)


def folder_problem(folder: Path, name: str) -> str:
    """Why a folder is not an inference directory of this model; "" if it is one."""
    try:
        if not folder.is_dir():
            return "no such folder"
        found = read_info(folder).name
        graphs = [file for file in GRAPHS if (folder / file).exists()]
        # The engine takes the first graph that exists.
        needed = (graphs[0] if graphs else GRAPHS[0], f"{PREFIX}.pdiparams")
        missing = [file for file in needed if not (folder / file).is_file() or not (folder / file).stat().st_size]
    except FeatError as error:
        return error.what.rstrip(".")
    except OSError as error:
        return str(error)
    if missing:
        return f"{' and '.join(missing)} missing or empty"
    return "" if found == name else f"it holds {found[:60]!r}"


def missing_files(folder: Path) -> list[str]:
    """Names of the files that are missing from an inference directory of Paddle."""
    lacks = [f"{PREFIX}{suffix}" for suffix in (".yml", ".pdiparams") if not (folder / f"{PREFIX}{suffix}").is_file()]
    return lacks if any((folder / name).is_file() for name in GRAPHS) else [*lacks, " or ".join(GRAPHS)]


def models_within(folder: Path) -> list[str]:
    """The inference directory below the folder of a run, a checkpoint or an unpacked archive; one, or none."""
    try:
        below = sorted(islice((f for f in folder.iterdir() if f.is_dir()), 100))
    except OSError:
        return []
    below.sort(key=lambda f: f.name != "best_model")
    places = [place for f in (folder, *below) for place in (f / PREFIX, f) if place != folder]
    return [str(place) for place in places if (place / f"{PREFIX}.yml").is_file()][:1]
