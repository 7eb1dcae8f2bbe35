"""Where each query's matches stand in the whole gallery, and what stands first. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ranking:
    """Result of `rank`: a row per query, in the order of the query list.

    Attributes:
        first_match: int64 [Q], rank of the first match, from 1; 0 where the gallery has none.
        average_precision: float64 [Q], over the full ranking; 0 where there is no match.
        precision_at_r: float64 [Q], average precision within the first R, R the number of matches.
        nearest: int64 [Q, K], gallery indices of the first K, -1 where the gallery ends before.
        similarity: float64 [Q, K], their similarities, nan where `nearest` is -1.
    """

    first_match: np.ndarray
    average_precision: np.ndarray
    precision_at_r: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray


def rank(
    query: np.ndarray,
    query_labels: Sequence[int] | np.ndarray,
    gallery: np.ndarray,
    gallery_labels: Sequence[int] | np.ndarray,
    own: np.ndarray | None = None,
    nearest: int = 5,
    memory: int = 2**30,
    threads: int = 1,
) -> Ranking:
    """Rank the gallery for each query by dot product.

    Args:
        query: float32 [Q, D]; gallery: float32 [G, D]. Rows of unit length give cosines.
        query_labels: integers [Q]; gallery_labels: integers [G].
        own: int64 [P, 2], pairs (query, gallery) of the same file, which are left out.
        nearest: K, how many of the first are kept.
        memory: bytes for similarities and what is counted on them.
        threads: that count, beside the matrix library's own.
    """
    query_labels, gallery_labels = np.asarray(query_labels), np.asarray(gallery_labels)
    out = Ranking(
        np.zeros(len(query), np.int64),
        np.zeros(len(query)),
        np.zeros(len(query)),
        np.full((len(query), nearest), -1, np.int64),
        np.full((len(query), nearest), np.nan),
    )
    for q in range(len(query)):
        scores = gallery.astype(np.float64) @ query[q].astype(np.float64)
        left_out = np.zeros(len(gallery), bool)
        if own is not None and len(own):
            left_out[own[own[:, 0] == q, 1]] = True
        same = gallery_labels == query_labels[q]
        order = np.lexsort((same, -scores))
        order = order[~left_out[order]]
        shown = order[:nearest]
        out.nearest[q, : len(shown)], out.similarity[q, : len(shown)] = shown, scores[shown]
        ranks = np.flatnonzero(same[order]) + 1
        if len(ranks):
            precisions = np.arange(1, len(ranks) + 1) / ranks
            out.first_match[q] = ranks[0]
            out.average_precision[q] = precisions.mean()
            out.precision_at_r[q] = precisions[ranks <= len(ranks)].sum() / len(ranks)
    return out
