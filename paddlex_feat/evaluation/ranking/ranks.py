"""Rank the full gallery for every query: the ranks of its matches and its K nearest images.

Float32 matrix products decide wherever the bound of their error leaves no doubt, exact products elsewhere. So no
figure depends on the sizes of blocks, the number of threads, or the order of the lists. A rank is the number of images
that rank above a match, plus 1: the gallery is never sorted as a whole.
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
from paddlex_feat.evaluation.ranking.exact_dot import MAX_DIM, require_unit_rows, take_rounded
from paddlex_feat.evaluation.ranking.rank_counter import QueryRankCounter
from paddlex_feat.evaluation.ranking.tiles import EXACT_ROWS, Block, Gallery

# Upper limits, for speed: queries that are compared with a tile, and rows and columns of a product.
QUERIES, ROWS, COLUMNS = 2048, 512, 65536
_BLAS_LOCK = threading.Lock()  # the matrix library has one number of threads for the whole process


@dataclass(frozen=True)
class Ranking:
    """Result of `rank_gallery`: a row for each query, in the order of the query list.

    Attributes:
        first_match: int64 [Q], rank of the first match, from 1; 0 where the gallery has none.
        first: int64 [Q], its gallery index, -1 where there is none.
        first_similarity: float64 [Q], its similarity, nan where there is none.
        average_precision: float64 [Q], over the full ranking; 0 where there is no match.
        precision_at_r: float64 [Q], average precision within the first R, R the number of matches.
        nearest: int64 [Q, K], gallery indices of the K nearest, -1 if the gallery is smaller.
        similarity: float64 [Q, K], their similarities, nan where `nearest` is -1.
    """

    first_match: np.ndarray
    first: np.ndarray
    first_similarity: np.ndarray
    average_precision: np.ndarray
    precision_at_r: np.ndarray
    nearest: np.ndarray
    similarity: np.ndarray


def rank_gallery(
    query: np.ndarray,
    query_labels: Sequence[int] | np.ndarray,
    gallery: np.ndarray,
    gallery_labels: Sequence[int] | np.ndarray,
    self_pairs: np.ndarray | None = None,
    nearest: int = 5,
    memory_bytes: int = 2**30,
    threads: int = 1,
) -> Ranking:
    """Rank the gallery for each query by cosine similarity.

    The similarity is the dot product of the two features, whose components are rounded to multiples of 2**-26. At equal
    similarity an image of another label ranks above a match: ties count against the network, and the ranks depend
    neither on a sort nor on the order of the lists.

    Args:
        query: float32 [Q, D], rows of length 1 (or 0), an array or a memory-mapped file.
        query_labels: integers [Q].
        gallery: float32 [G, D], as `query`.
        gallery_labels: integers [G].
        self_pairs: int64 [P, 2], pairs (query, gallery) of the same file, which are left out.
        nearest: K, number of nearest images in the result.
        memory_bytes: for similarities and counts, beside the features.
        threads: of the computation; the matrix library itself uses one meanwhile.

    Raises:
        EvaluationError: If features are not finite or not of unit length, shapes and labels do not fit each other, the
            gallery is empty, or features have more than MAX_DIM components.
    """
    query, gallery = np.asarray(query, np.float32), np.asarray(gallery, np.float32)
    labels, gallery_labels = np.asarray(query_labels), np.asarray(gallery_labels)
    _check_arguments(query, labels, gallery, gallery_labels)
    labels, columns = labels.astype(np.int64), Gallery(gallery, gallery_labels.astype(np.int64))
    excluded = _excluded_columns(columns, len(query), self_pairs)
    sizes = _sizes(memory_bytes, threads, columns, labels)
    out, order = _empty_ranking(len(query), nearest), np.argsort(labels, kind="stable")
    with _BLAS_LOCK, ThreadPoolExecutor(threads, "rank") as pool, threadpool_limits(1, user_api="blas"):
        for queries in (order[i : i + sizes.queries] for i in range(0, len(order), sizes.queries)):
            parts = [queries[i : i + sizes.rows] for i in range(0, len(queries), sizes.rows)]
            blocks = [
                Block(
                    columns,
                    take_rounded(query, part),
                    labels[part],
                    [excluded[q] for q in part],
                    nearest,
                    sizes.exact_width,
                )
                for part in parts
            ]
            _scan_gallery(columns, blocks, sizes, pool, threads)
            for q, counter in zip(queries.tolist(), (c for b in blocks for c in b.counters), strict=True):
                _write(out, q, counter, columns.order)
    return out


def _scan_gallery(gallery: Gallery, blocks: list[Block], sizes: _Sizes, pool: Executor, threads: int) -> None:
    """Feed every gallery tile to every query block; one thread computes the product and the counts of a block."""
    free: SimpleQueue[np.ndarray] = SimpleQueue()
    for _ in range(threads):
        free.put(np.empty((sizes.rows, sizes.columns), np.float32))
    tile = np.empty((sizes.columns, gallery.dim), np.float32)

    def count(block: Block, start: int) -> None:
        buffer = free.get()
        try:
            block.count_tile(tile[: len(gallery) - start], start, buffer)
        finally:
            free.put(buffer)

    for start in range(0, len(gallery), sizes.columns):
        gallery.tile(start, sizes.columns, tile)
        for _ in pool.map(partial(count, start=start), blocks):
            pass


@dataclass(frozen=True)
class _Sizes:
    """Sizes of the pieces of the computation.

    Attributes:
        queries: compared with a tile of the gallery before the next tile is read.
        rows: of these, in a block.
        columns: of a tile.
        exact_width: gallery images of an exact product.
    """

    queries: int
    rows: int
    columns: int
    exact_width: int


def _sizes(memory_bytes: int, threads: int, gallery: Gallery, labels: np.ndarray) -> _Sizes:
    """Sizes that keep within the memory: a quarter each for the tile, float32 products, exact products, and queries.

    Peak bytes: 4 D for each column of the tile; for each column of a thread's float32 products, 4 a row, and 32 where a
    row is sorted; for each column of its exact product, 16 D, and 64 a query; for each query, 16 D, and 64 a match.
    """
    quarter, per_thread, dim = memory_bytes // 4, memory_bytes // 4 // threads, gallery.dim
    first, last = gallery.matches(labels)
    matches = int((last - first).max(initial=0))
    widest = int(np.clip(min(quarter // (4 * dim), per_thread // 36), 1, COLUMNS))
    columns = -(-len(gallery) // -(-len(gallery) // widest))
    queries = int(np.clip(quarter // (16 * dim + 64 * matches + 1024), 1, QUERIES))
    rows = int(np.clip((per_thread // columns - 32) // 4, 1, ROWS))
    exact_width = int(np.clip(per_thread // (16 * dim + 64 * EXACT_ROWS), 1, columns))
    return _Sizes(queries, min(rows, -(-min(queries, max(len(labels), 1)) // threads)), columns, exact_width)


def _check_arguments(query: np.ndarray, labels: np.ndarray, gallery: np.ndarray, gallery_labels: np.ndarray) -> None:
    dim = gallery.shape[1] if gallery.ndim == 2 else 0
    if query.ndim != 2 or query.shape[1] != dim or not 1 <= dim <= MAX_DIM or not len(gallery):
        raise EvaluationError(
            f"Queries of shape {query.shape} cannot be compared with a gallery of shape {gallery.shape}.",
            fix=f"Both need rows of the same length, 1 to {MAX_DIM}, and the gallery at least one.",
            code="feature-shapes",
        )
    for what, rows, found in (("queries", query, labels), ("gallery images", gallery, gallery_labels)):
        if found.shape != (len(rows),) or (len(found) and found.dtype.kind not in "iu"):
            raise EvaluationError(
                f"{len(rows)} {what} need as many integer labels, not {found.dtype} {found.shape}.",
                code="label-shapes",
            )
    require_unit_rows(query, "query")
    require_unit_rows(gallery, "gallery")


def _excluded_columns(gallery: Gallery, queries: int, self_pairs: np.ndarray | None) -> list[np.ndarray]:
    """For each query the gallery columns of its own file."""
    if self_pairs is None:
        self_pairs = np.empty((0, 2), np.int64)
    pairs = self_pairs[np.argsort(self_pairs[:, 0], kind="stable")]
    return np.split(gallery.columns_of(pairs[:, 1]), np.searchsorted(pairs[:, 0], np.arange(1, queries)))


def _empty_ranking(queries: int, nearest: int) -> Ranking:
    return Ranking(
        first_match=np.zeros(queries, np.int64),
        first=np.full(queries, -1, np.int64),
        first_similarity=np.full(queries, np.nan),
        average_precision=np.zeros(queries),
        precision_at_r=np.zeros(queries),
        nearest=np.full((queries, nearest), -1, np.int64),
        similarity=np.full((queries, nearest), np.nan),
    )


def _write(out: Ranking, q: int, counter: QueryRankCounter, order: np.ndarray) -> None:
    """Fill in a query's row; `order` is the gallery index of each column."""
    similarity, columns = counter.nearest()
    out.nearest[q, : len(columns)] = order[columns]
    out.similarity[q, : len(columns)] = similarity
    ranks = counter.ranks()
    if len(ranks):
        best, column = counter.first_match
        out.first[q], out.first_similarity[q] = order[column], best
        precisions = np.arange(1, len(ranks) + 1) / ranks
        out.first_match[q] = ranks[0]
        out.average_precision[q] = precisions.mean()
        out.precision_at_r[q] = precisions[ranks <= len(ranks)].sum() / len(ranks)
