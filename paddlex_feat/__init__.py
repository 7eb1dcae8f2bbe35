"""Image features (metric learning) on PaddlePaddle: check, train, evaluate, export, predict."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["__version__", "create_model"]


def create_model(*args: Any, **kwargs: Any) -> Any:
    """A feature extractor from an inference directory; see paddlex_feat.inference.predictor.create_model."""
    from paddlex_feat.inference.predictor import create_model as create  # `import paddlex_feat` stays cheap

    return create(*args, **kwargs)
