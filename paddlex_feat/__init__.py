"""Image features (metric learning) on PaddlePaddle: check, train, evaluate, export, predict.

The names of `__all__` are imported when they are first used, so that `import paddlex_feat` is cheap. docs/python.md
shows their use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddlex_feat.config.schema import Config
    from paddlex_feat.data.images.limits import MOST_PIXELS
    from paddlex_feat.data.samplers import PKSampler, ShuffleSampler
    from paddlex_feat.errors import (
        ConfigError,
        DatasetError,
        DependencyError,
        DeviceError,
        DownloadError,
        EvaluationError,
        FeatError,
        ImageError,
        Interrupted,
        OutOfMemoryError,
        OutputError,
        TrainingError,
        WeightsError,
    )
    from paddlex_feat.evaluation.metrics import RetrievalMetrics, retrieval_metrics
    from paddlex_feat.inference.predictor import Predictor, create_model
    from paddlex_feat.inference.results import FeatureResult
    from paddlex_feat.inference.writers import save_features
    from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
    from paddlex_feat.losses.triplet_angular_margin import TripletAngularMarginLoss
    from paddlex_feat.modes.api import (
        CheckResult,
        EvaluateResult,
        ExportResult,
        TrainResult,
        check_dataset,
        evaluate,
        export,
        load_config,
        train,
    )
    from paddlex_feat.modes.callbacks import TrainingCallback

__version__ = "0.1.0"
__all__ = [
    "MOST_PIXELS",
    "CheckResult",
    "Config",
    "ConfigError",
    "DatasetError",
    "DependencyError",
    "DeviceError",
    "DownloadError",
    "EvaluateResult",
    "EvaluationError",
    "ExportResult",
    "FeatError",
    "FeatureResult",
    "ImageError",
    "Interrupted",
    "LabelSmoothingCrossEntropy",
    "OutOfMemoryError",
    "OutputError",
    "PKSampler",
    "Predictor",
    "RetrievalMetrics",
    "ShuffleSampler",
    "TrainResult",
    "TrainingCallback",
    "TrainingError",
    "TripletAngularMarginLoss",
    "WeightsError",
    "__version__",
    "check_dataset",
    "create_model",
    "evaluate",
    "export",
    "load_config",
    "retrieval_metrics",
    "save_features",
    "train",
]
_MODULES = {  # where the names of __all__ are; the errors are in `errors`
    "Config": "config.schema",
    "MOST_PIXELS": "data.images.limits",
    "PKSampler": "data.samplers",
    "ShuffleSampler": "data.samplers",
    "RetrievalMetrics": "evaluation.metrics",
    "retrieval_metrics": "evaluation.metrics",
    "Predictor": "inference.predictor",
    "create_model": "inference.predictor",
    "FeatureResult": "inference.results",
    "save_features": "inference.writers",
    "LabelSmoothingCrossEntropy": "losses.label_smoothing",
    "TripletAngularMarginLoss": "losses.triplet_angular_margin",
    "CheckResult": "modes.api",
    "EvaluateResult": "modes.api",
    "ExportResult": "modes.api",
    "TrainResult": "modes.api",
    "check_dataset": "modes.api",
    "evaluate": "modes.api",
    "export": "modes.api",
    "load_config": "modes.api",
    "train": "modes.api",
    "TrainingCallback": "modes.callbacks",
}


def __getattr__(name: str) -> Any:
    """A name of __all__, imported when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'errors')}"), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
