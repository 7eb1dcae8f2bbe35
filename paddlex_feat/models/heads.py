"""Necks and heads: what stands between the backbone and the losses."""

from __future__ import annotations

import paddle
from paddle import nn


class BNNeck(nn.Layer):
    """BatchNorm on the embedding, shift frozen at 0 (Luo et al., arXiv:1903.07071).

    forward: float32 [N, D] -> float32 [N, D].
    """

    def __init__(self, dim: int):
        super().__init__()
        self.feat_bn = nn.BatchNorm1D(dim, momentum=0.9, epsilon=1e-5, bias_attr=paddle.ParamAttr(trainable=False))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.feat_bn(x)


class LinearHead(nn.Layer):
    """Class logits without bias, weights N(0, 0.001): float32 [N, D] -> float32 [N, C]."""

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        init = paddle.ParamAttr(initializer=nn.initializer.Normal(std=0.001))
        self.fc = nn.Linear(dim, num_classes, weight_attr=init, bias_attr=False)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return self.fc(x)
