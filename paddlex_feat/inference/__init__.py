"""Run exported models, and make them.

`predictor` is the Python API, `engines` what runs a graph, `inputs` what it takes, `results` and `writers` what comes
out, `export` from weights to an inference directory, `model_info` and `model_zoo` which model a directory holds and
where official ones come from.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddlex_feat.inference.engines import ENGINES, Engine, EngineOptions, EngineSpec
    from paddlex_feat.inference.extractor import FeatureExtractor
    from paddlex_feat.inference.predictor import Predictor, create_model
    from paddlex_feat.inference.results import FeatureResult
    from paddlex_feat.inference.writers import save_features

__all__ = [
    "ENGINES",
    "Engine",
    "EngineOptions",
    "EngineSpec",
    "FeatureExtractor",
    "FeatureResult",
    "Predictor",
    "create_model",
    "save_features",
]
_MODULES = {
    "ENGINES": "engines",
    "Engine": "engines",
    "EngineOptions": "engines",
    "EngineSpec": "engines",
    "FeatureExtractor": "extractor",
    "FeatureResult": "results",
    "Predictor": "predictor",
    "create_model": "predictor",
    "save_features": "writers",
}


def __getattr__(name: str) -> Any:
    """Import a name of __all__ when it is first used: this package itself imports neither OpenCV nor Paddle."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
