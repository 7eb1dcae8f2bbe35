"""Proxy-NCA loss (Movshovitz-Attias et al., arXiv:1703.07464) with the scale of ProxyNCA++ (arXiv:2004.01113)."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.losses import LossContext
from paddlex_feat_extras import ProxyNCAParams


class ProxyNCALoss(nn.Layer):
    """Classifies every image by its distances to one trained proxy for each class.

    With d(x, p) the squared Euclidean distance of feature x and proxy p, both at length 1, and p_y the proxy of the
    image's class, the loss is the mean over the batch of

        -log(exp(-scale d(x, p_y)) / sum over all p of exp(-scale d(x, p)))

    Args:
        num_classes: number of proxies C.
        embedding_size: length D of a feature.
        scale: factor on the distances.
    """

    def __init__(self, num_classes: int, embedding_size: int, scale: float = 9.0):
        super().__init__()
        self.scale = scale
        start = nn.initializer.Normal(std=0.1)  # short proxies turn fast
        self.proxies = self.create_parameter([num_classes, embedding_size], default_initializer=start)

    def forward(self, features: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """Return the loss, a float32 scalar, of features float32 [N, D] and labels int64 [N]."""
        distance = 2 - 2 * F.normalize(features, axis=1) @ F.normalize(self.proxies, axis=1).T  # [N, C]
        return F.cross_entropy(-self.scale * distance, labels)


def proxy_nca(params: ProxyNCAParams, context: LossContext) -> ProxyNCALoss:
    """Builder of the loss proxy_nca."""
    return ProxyNCALoss(context.num_classes, context.embedding_size, params.scale)
