"""Image features (metric learning) on PaddlePaddle: check, train, evaluate, export, predict."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddlex_feat.data.images.limits import MOST_PIXELS
    from paddlex_feat.errors import (
        ConfigError,
        DependencyError,
        DeviceError,
        DownloadError,
        FeatError,
        ImageError,
        OutOfMemoryError,
        OutputError,
        WeightsError,
    )
    from paddlex_feat.inference.predictor import Predictor, create_model
    from paddlex_feat.inference.results import FeatureResult
    from paddlex_feat.inference.writers import save_features

__version__ = "0.1.0"
__all__ = [
    "MOST_PIXELS",
    "ConfigError",
    "DependencyError",
    "DeviceError",
    "DownloadError",
    "FeatError",
    "FeatureResult",
    "ImageError",
    "OutOfMemoryError",
    "OutputError",
    "Predictor",
    "WeightsError",
    "__version__",
    "create_model",
    "save_features",
]
_HOMES = {  # of what __all__ names and is not here, the others: errors
    "FeatureResult": "inference.results",
    "MOST_PIXELS": "data.images.limits",
    "Predictor": "inference.predictor",
    "create_model": "inference.predictor",
    "save_features": "inference.writers",
}


def __getattr__(name: str) -> Any:
    """What __all__ names, imported when it is first asked for: `import paddlex_feat` stays cheap."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'errors')}")
    globals()[name] = value = getattr(home, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
