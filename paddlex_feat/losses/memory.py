"""Features of past batches, with which losses on pairs compare the current one (Wang et al., arXiv:1912.06798)."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeGuard

import numpy as np
import paddle

from paddlex_feat.errors import WeightsError
from paddlex_feat.losses.rows import unit_rows

_FEATURES, _LABELS = "memory_features", "memory_labels"


class References(NamedTuple):
    """What the images of a batch are compared with.

    Attributes:
        unit: features at length 1, float32 [M, D].
        labels: class indices, int64 [M].
    """

    unit: paddle.Tensor
    labels: paddle.Tensor

    def and_then(self, others: References | None) -> References:
        """These and, after them, `others`; without others the same tensors."""
        if others is None:
            return self
        unit = paddle.concat([self.unit, others.unit.astype(self.unit.dtype)])
        return References(unit, paddle.concat([self.labels, others.labels]))


class FeatureMemory:
    """The features and labels of the images of past batches, newest first, without gradient.

    Args:
        images: how many are kept, at most.
        dim: length D of a feature.

    Attributes:
        references: what it holds, None before the first batch.
    """

    def __init__(self, images: int, dim: int):
        self._images = images
        self._dim = dim
        self.references: References | None = None

    @paddle.no_grad()
    def add(self, features: paddle.Tensor, labels: paddle.Tensor) -> None:
        """Remember features [N, D] of any norm and labels int64 [N]; forget the oldest."""
        self._keep(References(unit_rows(features.detach()), labels).and_then(self.references))

    def _keep(self, references: References) -> None:
        self.references = References(references.unit[: self._images], references.labels[: self._images])

    def state(self) -> dict[str, np.ndarray]:
        """What it holds, for checkpoints."""
        if self.references is None:
            return {}
        return {_FEATURES: self.references.unit.numpy(), _LABELS: self.references.labels.numpy()}

    def load(self, saved: dict[str, Any], where: str) -> None:
        """Take what `state` gave, as far as there is room.

        Args:
            saved: from `state`; other entries are ignored.
            where: the file, for messages.

        Raises:
            WeightsError: the entries do not have the form that `state` gives them.
        """
        if _FEATURES not in saved and _LABELS not in saved:
            return
        features, labels = saved.get(_FEATURES), saved.get(_LABELS)
        if _is(features, np.float32, 2) and _is(labels, np.int64, 1) and features.shape == (len(labels), self._dim):
            self._keep(References(paddle.to_tensor(features), paddle.to_tensor(labels)))
            return
        raise WeightsError(
            f"The memory of past batches is not {self._dim} finite numbers and a label for each image.",
            where=where,
            fix="Resume from a checkpoint of the same model, written by this program.",
            code="memory-form",
        )


def _is(value: Any, dtype: type, dimensions: int) -> TypeGuard[np.ndarray]:
    """Whether a saved value is a finite array of this kind."""
    right = isinstance(value, np.ndarray) and value.dtype == dtype and value.ndim == dimensions
    return right and bool(np.isfinite(value).all())
