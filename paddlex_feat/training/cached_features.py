"""What the backbone gives for every training image, computed once: the input of class means and of the linear probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import paddle
from paddle import nn

from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.loading.loader import CorruptImageReplacer, training_batches
from paddlex_feat.errors import ConfigError, TrainingError
from paddlex_feat.evaluation.embed import Extractor
from paddlex_feat.runtime.cpu import memory_limit
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.progress import bar
from paddlex_feat.training.adaptation.maps import MIRRORED

_NECK_ROWS = 4096  # that pass through the neck together


@dataclass(frozen=True)
class CachedFeatures:
    """Features of all training images, and perhaps of their mirror images.

    Attributes:
        features: float32 [V, N, D], V views (1, or 2 with the mirror images) of N images, not normalized.
        labels: class index of every image, int64 [N].
    """

    features: np.ndarray
    labels: np.ndarray

    @property
    def plain(self) -> np.ndarray:
        """Features of the images, float32 [N, D]."""
        return np.asarray(self.features[0])

    @property
    def mirrored(self) -> np.ndarray | None:
        """Features of their mirror images, float32 [N, D], if there are any."""
        return np.asarray(self.features[1]) if len(self.features) > 1 else None

    def divided(self, parts: int) -> list[CachedFeatures]:
        """The features in as many parts of equal length, float32 [V, N, D / parts] each."""
        return [CachedFeatures(part, self.labels) for part in np.split(self.features, parts, axis=2)]

    @paddle.no_grad()
    def through(self, neck: nn.Layer) -> CachedFeatures:
        """The same features after a neck in evaluation mode, float32 [V, N, D']."""
        training, views = neck.training, []
        neck.eval()
        for view in self.features:
            parts = [view[i : i + _NECK_ROWS] for i in range(0, len(view), _NECK_ROWS)]
            views.append(np.concatenate([neck(paddle.to_tensor(p)).astype("float32").numpy() for p in parts]))
        if training:
            neck.train()
        return CachedFeatures(np.stack(views), self.labels)


def cache_features(
    extract: Extractor,
    files: Sequence[str],
    labels: np.ndarray,
    *,
    mirrored: bool,
    batch_size: int,
    workers: int,
    group: ProcessGroup,
    bad: CorruptImageReplacer | None,
    look: Callable[[], None],
) -> CachedFeatures:
    """Features of all training images without augmentation, in the order of the list, on every rank.

    Args:
        extract: pixels to features that are not normalized.
        files: paths of the images.
        labels: their class indices, int64 [N].
        mirrored: whether mirror images are wanted too; of more than MIRRORED images there are none.
        batch_size: images of a batch.
        workers: decoding threads.
        group: processes that share the work by whole batches.
        bad: replaces undecodable images by others of their class; None: they are errors.
        look: called after a batch, equally often on every rank; its exceptions end the computation.

    Raises:
        ImageError: an image cannot be decoded.
        TrainingError: features are not finite.
        ConfigError: the features would take more than half of the memory.
    """
    plain = Augment(flip_prob=0.0, pad=0, rotation_prob=0.0)
    starts = range(0, len(files), batch_size)
    of_ranks = [
        [np.arange(i, min(i + batch_size, len(files))) for i in starts[r :: group.size]] for r in range(group.size)
    ]
    batches = of_ranks[group.rank]
    rounds = len(starts) // group.size  # in which every rank has a batch
    views = 2 if mirrored and len(files) <= MIRRORED else 1
    rows: list[np.ndarray] = []
    with bar(len(files), "features", "images") as progress:
        loaded = training_batches(batches, files, extract.preprocess, plain, (0,), workers, 0, bad)
        for number, (_, images) in enumerate(loaded):
            both = [extract(np.ascontiguousarray(images[:, :, ::-1] if view else images)) for view in range(views)]
            rows.append(np.stack(both, axis=1))
            _check(rows[-1], len(files), files[int(batches[number][0])])
            progress.update(min(len(images) * group.size, len(files) - progress.n))
            if number < rounds:
                look()
    features = _of_all_ranks(rows, views, group)
    order = np.argsort(np.concatenate([rows for batches in of_ranks for rows in batches]))
    return CachedFeatures(np.ascontiguousarray(features[order].transpose(1, 0, 2)), labels)


def _of_all_ranks(rows: list[np.ndarray], views: int, group: ProcessGroup) -> np.ndarray:
    """The rows of all ranks, of which a rank may have none, by one exchange."""
    dim = group.all_gather_rows(np.array([rows[0].shape[-1] if rows else 0], np.int64))
    width = int(np.concatenate(dim).max())
    dtype = rows[0].dtype if rows else np.dtype(np.float32)
    own = np.concatenate(rows) if rows else np.zeros((0, views, width), dtype)
    return np.concatenate(group.all_gather_rows(own))


def _check(rows: np.ndarray, images: int, name: str) -> None:
    needed = images * rows[0].nbytes
    if needed > memory_limit() // 2:
        raise ConfigError(
            f"The features of {images} training images would take {needed / 1e9:.1f} GB, more than half of the memory.",
            where="Train.method, Train.init_head",
            fix="Use Train.method=full and Train.init_head=random, or a machine with more memory.",
            code="features-memory",
        )
    if not np.isfinite(rows).all():
        raise TrainingError(
            "The start weights give features that are not finite numbers.",
            where=f"the batch of {name}",
            fix="Start from other weights with Train.pretrain_weight_path.",
            code="start-not-finite",
        )
