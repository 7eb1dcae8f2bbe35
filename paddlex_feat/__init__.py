"""Image features (metric learning) on PaddlePaddle: check, train, evaluate, export, predict."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

# An image of more pixels is refused, not decoded, for a small file can claim to be a huge image: the formats that
# are read take up to 8 bytes a pixel here, so one image takes less than 1 GiB, and cameras of 108 megapixels fit.
# OpenCV reads the limit when it is first imported; where that was before, data/images/formats.py looks at each header.
MOST_PIXELS = 110_000_000
OPENCV_CAME_FIRST = "cv2" in sys.modules and "OPENCV_IO_MAX_IMAGE_PIXELS" not in os.environ
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))

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
