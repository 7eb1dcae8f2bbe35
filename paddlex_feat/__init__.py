"""Image features (metric learning) on PaddlePaddle: check, train, evaluate, export, predict."""

from __future__ import annotations

import os
from typing import Any

# An image of more pixels is refused, not decoded, for a small file can claim to be a huge image: the formats that
# are read take up to 8 bytes a pixel here, so one image takes less than 1 GiB, and cameras of 108 megapixels fit.
# OpenCV reads the limit when it is first imported.
MOST_PIXELS = 110_000_000
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(MOST_PIXELS))

__version__ = "0.1.0"
__all__ = ["MOST_PIXELS", "__version__", "create_model", "save_features"]


def create_model(*args: Any, **kwargs: Any) -> Any:
    """A feature extractor from an inference directory; see paddlex_feat.inference.predictor.create_model."""
    from paddlex_feat.inference.predictor import create_model as create  # `import paddlex_feat` stays cheap

    return create(*args, **kwargs)


def save_features(*args: Any, **kwargs: Any) -> Any:
    """Write results to one .jsonl, .npz or .parquet file; see paddlex_feat.inference.savers.save_features."""
    from paddlex_feat.inference.savers import save_features as save

    return save(*args, **kwargs)
