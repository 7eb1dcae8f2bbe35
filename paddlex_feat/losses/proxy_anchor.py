"""Proxy-Anchor loss (Kim et al., arXiv:2003.13911)."""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.losses import LossContext
from paddlex_feat.losses.params import ProxyAnchorParams
from paddlex_feat.losses.rows import log1p_sum_exp, unit_rows


class ProxyAnchorLoss(nn.Layer):
    """Compares every image with one trained proxy of each class, equation 4 of the paper.

    With s(x, p) the cosine of feature x and proxy p, P all proxies, P+ those of the classes in the batch, X+ and X-
    the features of a proxy's class and of all others:

        1/|P+| sum over P+ of log(1 + sum over X+ of exp(-alpha (s(x, p) - margin)))
        + 1/|P| sum over P of log(1 + sum over X- of exp(alpha (s(x, p) + margin)))

    forward: features [N, D] of any norm, labels int64 [N] -> float32 scalar, computed in float32 in half precision too.

    Args:
        num_classes: number of proxies C.
        embedding_size: length D of a feature.
        margin: delta of the paper.
        alpha: scale of the cosines.
    """

    def __init__(self, num_classes: int, embedding_size: int, margin: float = 0.1, alpha: float = 32.0):
        super().__init__()
        self.margin = margin
        self.alpha = alpha
        start = nn.initializer.Normal(std=math.sqrt(2 / num_classes))  # Kaiming's over the classes, as the authors do
        self.proxies = self.create_parameter([num_classes, embedding_size], default_initializer=start)

    def forward(self, features: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Loss of features [N, D] and labels int64 [N]: float32 scalar."""
        with paddle.amp.auto_cast(enable=False):
            cos = unit_rows(self.proxies) @ unit_rows(features).T  # [C, N]
            same = F.one_hot(labels, len(self.proxies)).T.astype("bool")
            pull = log1p_sum_exp(-self.alpha * (cos - self.margin), same)
            push = log1p_sum_exp(self.alpha * (cos + self.margin), ~same)
            present = same.any(axis=1).astype(cos.dtype).sum()
            return pull.sum() / present + push.mean()

    def set_class_means(self, means: np.ndarray) -> None:
        """Start the proxies at the classes' mean features; a row of zeros leaves that proxy as it is.

        Args:
            means: float32 [C, D], rows of length 1.
        """
        known = np.any(means, axis=1, keepdims=True)
        self.proxies.set_value(np.where(known, means, self.proxies.numpy()))

    def class_vectors(self) -> np.ndarray:
        """The proxy of each class, float32 [C, 1, D]."""
        proxies: np.ndarray = self.proxies.numpy()[:, None]
        return proxies


def proxy_anchor(params: ProxyAnchorParams, context: LossContext) -> ProxyAnchorLoss:
    """Builder of the loss proxy_anchor."""
    return ProxyAnchorLoss(context.num_classes, context.embedding_size, params.margin, params.alpha)
