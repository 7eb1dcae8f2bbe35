"""Proxy Anchor loss (Kim et al., "Proxy Anchor Loss for Deep Metric Learning", CVPR 2020, arXiv:2003.13911)."""

from __future__ import annotations

import math

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.losses import LossContext
from paddlex_feat_extras import ProxyAnchorParams


class ProxyAnchorLoss(nn.Layer):
    """Compares every image with one trained proxy for each class, equation (4) of the paper.

    With s(x, p) the cosine of feature x and proxy p, P all proxies, P+ those of the classes in the batch, X+ and X-
    the features of a proxy's class and of all others:

        1/|P+| sum over P+ of log(1 + sum over X+ of exp(-alpha (s(x, p) - margin)))
        + 1/|P| sum over P of log(1 + sum over X- of exp(alpha (s(x, p) + margin)))

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
        # Kaiming normal over the classes, as in the authors' code.
        start = nn.initializer.Normal(std=math.sqrt(2 / num_classes))
        self.proxies = self.create_parameter([num_classes, embedding_size], default_initializer=start)

    def forward(self, features: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Return the loss, a float32 scalar, of features float32 [N, D] and labels int64 [N]."""
        cos = F.normalize(features, axis=1) @ F.normalize(self.proxies, axis=1).T  # [N, C]
        same = F.one_hot(labels, cos.shape[1]).astype("bool")
        pull = _log1p_sum_exp(-self.alpha * (cos - self.margin), same)
        push = _log1p_sum_exp(self.alpha * (cos + self.margin), ~same)
        present = same.any(axis=0).astype("float32").sum()
        return pull.sum() / present + push.mean()


def _log1p_sum_exp(z: paddle.Tensor, counts: paddle.Tensor) -> paddle.Tensor:
    """log(1 + sum of exp(z) over the rows that count): float32 [N, C], bool [N, C] -> float32 [C]."""
    z = paddle.where(counts, z, paddle.full_like(z, -1e4))  # exp gives 0
    return paddle.logsumexp(paddle.concat([paddle.zeros_like(z[:1]), z]), axis=0)


def proxy_anchor(params: ProxyAnchorParams, context: LossContext) -> ProxyAnchorLoss:
    """Builder of the loss proxy_anchor."""
    return ProxyAnchorLoss(context.num_classes, context.embedding_size, params.margin, params.alpha)
