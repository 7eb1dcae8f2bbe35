"""Where each query's matches stand in the whole gallery, and what stands first.

Exact at any size. Float32 products decide wherever the bound of their error leaves no doubt, float64 products
where these leave one, and where even they are too close to call (copies of an image, for one) a product that is
exact in whatever order a matrix product adds. So no figure depends on how the work is cut up. A rank comes from
counting what stands before a match: the gallery is never sorted as a whole.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

import numpy as np
from threadpoolctl import threadpool_limits

from paddlex_feat.errors import EvaluationError
from paddlex_feat.evaluation.ranking.exact_dot import MOST_DIM, Features, error_bound
from paddlex_feat.evaluation.ranking.rank_counter import Standing
from paddlex_feat.evaluation.ranking.tiles import TOGETHER, Block, Gallery

# The largest pieces, for speed: queries that the gallery passes by together, and rows and columns of a product.
QUERIES, ROWS, COLUMNS = 2048, 512, 65536
_ALONE = threading.Lock()  # the matrix library's number of threads is one for the whole process


@dataclass(frozen=True)
class Ranking:
    """Result of `rank`: a row per query, in the order of the query list.

    Attributes:
        first_match: int64 [Q], rank of the first match, from 1; 0 where the gallery has none.
        first: int64 [Q], its gallery index, -1 where there is none.
        first_similarity: float64 [Q], its similarity, nan where there is none.
        average_precision: float64 [Q], over the full ranking; 0 where there is no match.
        precision_at_r: float64 [Q], average precision within the first R, R the number of matches.
        nearest: int64 [Q, K], gallery indices of the first K, -1 where the gallery ends before.
        similarity: float64 [Q, K], their similarities, nan where `nearest` is -1.
    """

    first_match: np.ndarray
    first: np.ndarray
    first_similarity: np.ndarray
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

    At equal similarity an image of another label stands before a match: ties count against us, and the
    ranks depend neither on a sort nor on the order of the lists.

    Args:
        query: float32 [Q, D]; gallery: float32 [G, D], arrays or memory-mapped files. Rows of unit length
            give cosines.
        query_labels: integers [Q]; gallery_labels: integers [G].
        own: int64 [P, 2], pairs (query, gallery) of the same file, which are left out.
        nearest: K, how many of the first are kept.
        memory: bytes for similarities and what is counted on them, beside the features.
        threads: that compute; the matrix library uses none of its own meanwhile.

    Raises EvaluationError for features that are not finite, for shapes and labels that do not fit each other, an
    empty gallery, and more than 2**13 components.
    """
    query, gallery = np.asarray(query, np.float32), np.asarray(gallery, np.float32)
    labels, gallery_labels = np.asarray(query_labels), np.asarray(gallery_labels)
    _require_sound(query, labels, gallery, gallery_labels)
    labels, whole = labels.astype(np.int64), Gallery(gallery, gallery_labels.astype(np.int64))
    out = _nothing_found(len(query), nearest)
    features, hidden = Features.each(query, "query"), _hidden(whole, len(query), own)
    exponents = features.exponents + whole.features.exponents
    bounds = (error_bound(features, whole.features, 2.0**-24), error_bound(features, whole.features, 2.0**-53))
    sizes = _sizes(memory, threads, gallery.shape[1], whole, labels)
    order = np.argsort(labels, kind="stable")
    with _ALONE, ThreadPoolExecutor(threads, "rank") as pool, threadpool_limits(1, user_api="blas"):
        for queries in (order[i : i + sizes.queries] for i in range(0, len(order), sizes.queries)):
            parts = [queries[i : i + sizes.rows] for i in range(0, len(queries), sizes.rows)]
            blocks = [
                Block(whole, features.take(part), labels[part], [hidden[q] for q in part], nearest, bounds, sizes.piece)
                for part in parts
            ]
            _pass_by(whole, blocks, sizes, pool, threads)
            for q, standing in zip(queries.tolist(), (s for b in blocks for s in b.standings), strict=True):
                _write(out, q, standing, whole.order, exponents[q])
    return out


def _pass_by(gallery: Gallery, blocks: list[Block], sizes: _Sizes, pool: Executor, threads: int) -> None:
    """Show the gallery to all blocks, tile by tile. A thread takes a block through product and counting."""
    free: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(threads):
        free.put(np.empty((sizes.rows, sizes.columns), np.float32))
    tile = np.empty((sizes.columns, blocks[0].dim), np.float32)

    def see(block: Block, start: int) -> None:
        buffer = free.get()
        try:
            block.see(tile[: len(gallery) - start], start, buffer)
        finally:
            free.put(buffer)

    for start in range(0, len(gallery), sizes.columns):
        gallery.tile(start, sizes.columns, tile)
        for _ in pool.map(partial(see, start=start), blocks):
            pass


@dataclass(frozen=True)
class _Sizes:
    """Queries that the gallery passes by together; of these a block's; columns of a tile, and of a float64 piece."""

    queries: int
    rows: int
    columns: int
    piece: int


def _sizes(memory: int, threads: int, dim: int, gallery: Gallery, labels: np.ndarray) -> _Sizes:
    """Pieces that keep within the memory: a fourth each for the tile, products, float64, and queries.

    Bytes that each needs at its peak: a column of the tile 4 D; of a thread's products 4 a row, and 32 where a row
    is sorted; of its float64 piece 56 D, and 64 for each query beside it; a query 48 D, and 64 a match.
    """
    fourth, own = memory // 4, memory // 4 // threads
    first, last = gallery.matches(labels)
    matches = int((last - first).max(initial=0))
    most = int(np.clip(min(fourth // (4 * dim), own // 36), 1, COLUMNS))
    columns = -(-len(gallery) // -(-len(gallery) // most))
    queries = int(np.clip(fourth // (48 * dim + 64 * matches + 1024), 1, QUERIES))
    rows = int(np.clip((own // columns - 32) // 4, 1, ROWS))
    piece = int(np.clip(own // (56 * dim + 64 * TOGETHER), 1, columns))
    return _Sizes(queries, min(rows, -(-min(queries, max(len(labels), 1)) // threads)), columns, piece)


def _require_sound(query: np.ndarray, labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray) -> None:
    dim = gallery.shape[1] if gallery.ndim == 2 else 0
    if query.ndim != 2 or query.shape[1] != dim or not 1 <= dim <= MOST_DIM or not len(gallery):
        raise EvaluationError(
            f"Queries of shape {query.shape} cannot be compared with a gallery of shape {gallery.shape}.",
            fix=f"Both need rows of the same length, 1 to {MOST_DIM}, and the gallery at least one.",
        )
    for what, rows, found in (("queries", query, labels), ("gallery images", gallery, gallery_labels)):
        if found.shape != (len(rows),) or (len(found) and found.dtype.kind not in "iu"):
            raise EvaluationError(f"{len(rows)} {what} need as many integer labels, not {found.dtype} {found.shape}.")


def _hidden(gallery: Gallery, queries: int, own: np.ndarray | None) -> list[np.ndarray]:
    """For each query the columns of its own file."""
    pairs = np.empty((0, 2), np.int64) if own is None else own[np.argsort(own[:, 0], kind="stable")]
    return np.split(gallery.columns_of(pairs[:, 1]), np.searchsorted(pairs[:, 0], np.arange(1, queries)))


def _nothing_found(queries: int, keep: int) -> Ranking:
    return Ranking(
        first_match=np.zeros(queries, np.int64),
        first=np.full(queries, -1, np.int64),
        first_similarity=np.full(queries, np.nan),
        average_precision=np.zeros(queries),
        precision_at_r=np.zeros(queries),
        nearest=np.full((queries, keep), -1, np.int64),
        similarity=np.full((queries, keep), np.nan),
    )


def _write(out: Ranking, q: int, standing: Standing, order: np.ndarray, exponent: np.ndarray) -> None:
    """A query's row; `order` is the gallery index of each column, `exponent` that of the similarities' scale."""
    similarity, columns = standing.nearest()
    out.nearest[q, : len(columns)] = order[columns]
    out.similarity[q, : len(columns)] = np.ldexp(similarity, exponent)
    ranks = standing.ranks()
    if len(ranks):
        best, column = standing.first_match
        out.first[q], out.first_similarity[q] = order[column], np.ldexp(best, exponent)[0]
        precisions = np.arange(1, len(ranks) + 1) / ranks
        out.first_match[q] = ranks[0]
        out.average_precision[q] = precisions.mean()
        out.precision_at_r[q] = precisions[ranks <= len(ranks)].sum() / len(ranks)
