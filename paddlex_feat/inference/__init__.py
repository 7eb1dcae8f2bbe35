"""Run exported models, and make them.

`predictor` is the Python API, `engines` what runs a graph, `inputs` what it takes, `results` and `writers` what comes
out, `export` from weights to an inference directory, `model_info` which model a directory holds, `model_zoo` and
`starter_model` where official ones and the starter's come from, `mirror` the average with mirror images.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddlex_feat.fileio.lazy import lazy_names

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

if not TYPE_CHECKING:  # seen by a type checker, it would make any name pass
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "engines": ("ENGINES", "Engine", "EngineOptions", "EngineSpec"),
            "extractor": ("FeatureExtractor",),
            "predictor": ("Predictor", "create_model"),
            "results": ("FeatureResult",),
            "writers": ("save_features",),
        },
    )
