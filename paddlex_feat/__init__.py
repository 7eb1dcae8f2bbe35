"""Image features (metric learning) on PaddlePaddle: check, train, evaluate, export, predict.

The names of `__all__` are imported when they are first used, so that `import paddlex_feat` is cheap. docs/python.md
shows their use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from paddlex_feat.fileio.lazy import lazy_names

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

if not TYPE_CHECKING:  # seen by a type checker, it would make any name pass
    _lazy_name, __dir__ = lazy_names(
        __name__,
        {
            "config.schema": ("Config",),
            "data.images.limits": ("MOST_PIXELS",),
            "data.samplers": ("PKSampler", "ShuffleSampler"),
            "errors": (
                "ConfigError",
                "DatasetError",
                "DependencyError",
                "DeviceError",
                "DownloadError",
                "EvaluationError",
                "FeatError",
                "ImageError",
                "Interrupted",
                "OutOfMemoryError",
                "OutputError",
                "TrainingError",
                "WeightsError",
            ),
            "evaluation.metrics": ("RetrievalMetrics", "retrieval_metrics"),
            "inference.predictor": ("Predictor", "create_model"),
            "inference.results": ("FeatureResult",),
            "inference.writers": ("save_features",),
            "losses.label_smoothing": ("LabelSmoothingCrossEntropy",),
            "losses.triplet_angular_margin": ("TripletAngularMarginLoss",),
            "modes.api": (
                "CheckResult",
                "EvaluateResult",
                "ExportResult",
                "TrainResult",
                "check_dataset",
                "evaluate",
                "export",
                "load_config",
                "train",
            ),
            "modes.callbacks": ("TrainingCallback",),
        },
    )

    def __getattr__(name: str) -> Any:
        if name in ("LabelSmoothingCrossEntropy", "TripletAngularMarginLoss"):
            from paddlex_feat.runtime.paddle_import import prepare_paddle

            prepare_paddle(training=True)  # Paddle takes its settings, threads among them, when it is imported
        return _lazy_name(name)
