"""Evaluate features by retrieval: embed the images of two lists, rank the gallery for each query, compute metrics.

Importing this package imports nothing else; the names below are imported when they are first used. Metrics and rankings
need NumPy alone. No module here needs Paddle, OpenCV (but for decoding images) or matplotlib: pages, tables and
plots are made in `paddlex_feat.reports`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddlex_feat.fileio.lazy import lazy_names

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

if not TYPE_CHECKING:  # seen by a type checker, it would make any name pass
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "embed": ("Extractor",),
            "evaluator": ("Evaluation", "Evaluator"),
            "metrics": ("RetrievalMetrics", "metrics_of", "retrieval_metrics"),
            "ranking.ranks": ("Ranking", "rank_gallery"),
        },
    )
