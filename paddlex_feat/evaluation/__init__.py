"""Evaluate features by retrieval: embed the images of two lists, rank the gallery for each query, compute metrics.

Importing this package imports nothing else; the names below are imported when they are first used. Metrics and rankings
need NumPy alone. No module here needs Paddle, OpenCV (but for decoding images) or matplotlib: pages, tables and
plots are made in `paddlex_feat.reports`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from paddlex_feat.evaluation.embed import Extractor
    from paddlex_feat.evaluation.evaluator import Evaluation, Evaluator
    from paddlex_feat.evaluation.metrics import RetrievalMetrics, metrics_of, retrieval_metrics
    from paddlex_feat.evaluation.ranking.ranks import Ranking, rank_gallery

__all__ = [
    "Evaluation",
    "Evaluator",
    "Extractor",
    "Ranking",
    "RetrievalMetrics",
    "metrics_of",
    "rank_gallery",
    "retrieval_metrics",
]
_MODULES = {
    "Evaluation": "evaluator",
    "Evaluator": "evaluator",
    "Extractor": "embed",
    "Ranking": "ranking.ranks",
    "RetrievalMetrics": "metrics",
    "metrics_of": "metrics",
    "rank_gallery": "ranking.ranks",
    "retrieval_metrics": "metrics",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value = getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
    return value
