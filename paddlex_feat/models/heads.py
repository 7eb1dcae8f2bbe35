"""Necks and heads, between the backbone and the losses."""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.config.base import Section
from paddlex_feat.models.spec import NetworkSpec


class BNNeck(nn.Layer):
    """BatchNorm on the embedding, shift kept at 0 (Luo et al., arXiv:1903.07071).

    forward: float32 [N, D] -> float32 [N, D].
    """

    def __init__(self, dim: int):
        super().__init__()
        # A learning rate of 0, not trainable=False: Paddle 3.3 gives the scale of a BatchNorm a gradient
        # only if the shift gets one.
        shift = paddle.ParamAttr(learning_rate=0.0)
        self.feat_bn = nn.BatchNorm1D(dim, momentum=0.9, epsilon=1e-5, bias_attr=shift)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, D] -> float32 [N, D]."""
        return self.feat_bn(x)


class LinearNeck(nn.Layer):
    """A fully connected layer on the embedding: float32 [N, D] -> float32 [N, D].

    Weights start Xavier normal (Glorot and Bengio, 2010), the bias at 0.
    """

    def __init__(self, dim: int):
        super().__init__()
        self.fc = nn.Linear(dim, dim, weight_attr=paddle.ParamAttr(initializer=nn.initializer.XavierNormal()))

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, D] -> float32 [N, D]."""
        return self.fc(x)


class LinearHead(nn.Layer):
    """Class logits without bias, weights N(0, 0.001): float32 [N, D] -> float32 [N, C].

    Takes the labels like every head, and does not look at them.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        init = paddle.ParamAttr(initializer=nn.initializer.Normal(std=0.001))
        self.fc = nn.Linear(dim, num_classes, weight_attr=init, bias_attr=False)

    def set_class_means(self, means: np.ndarray) -> None:
        """Start the class vectors at the classes' mean features, float32 [C, D], unit rows."""
        self.fc.weight.set_value(np.ascontiguousarray(means.T))

    def forward(self, x: paddle.Tensor, labels: paddle.Tensor | None = None) -> paddle.Tensor:
        """Logits, float32 [N, C], of features float32 [N, D]; `labels` is ignored."""
        return self.fc(x)


class ArcMargin(nn.Layer):
    """Additive angular margin (Deng et al., "ArcFace", arXiv:1801.07698).

    With t the angle between a feature and a class vector, the logit of the own class is
    scale * cos(t + margin), that of another scale * cos(t). Where t + margin would pass pi, and the
    cosine would rise again, it is scale * (cos t - margin * sin margin). sin t is taken as
    sqrt(1 - cos^2 t + 1e-6), whose derivative is finite at t = 0, as in PaddleClas. A cosine that TF32
    products round to 1.001 gives no NaN: the radicand is at least 1e-7.

    forward: float32 [N, D], int64 [N] -> float32 [N, C]. In evaluation mode, or without labels,
    it returns cos t, neither shifted nor scaled. A zero feature has cosine 0 with every class.

    Args:
        margin: radians. scale: factor on the cosines before the softmax.
    """

    def __init__(self, dim: int, num_classes: int, margin: float = 0.2, scale: float = 30.0):
        super().__init__()
        self.margin = margin
        self.scale = scale
        self.weight = self.create_parameter([dim, num_classes], default_initializer=nn.initializer.XavierNormal())

    def set_class_means(self, means: np.ndarray) -> None:
        """Start the class vectors at the classes' mean features, float32 [C, D], unit rows."""
        self.weight.set_value(np.ascontiguousarray(means.T))

    def forward(self, x: paddle.Tensor, labels: paddle.Tensor | None = None) -> paddle.Tensor:
        """Logits, float32 [N, C], of features float32 [N, D]; cosines in evaluation mode, or without labels."""
        cos = paddle.matmul(_unit(x, axis=1), _unit(self.weight, axis=0))
        if labels is None or not self.training:
            return cos
        # The margin is computed for the own class alone: N values, not N x C.
        own = paddle.take_along_axis(cos, labels.unsqueeze(1), axis=1)
        sin = paddle.sqrt((1 - own * own + 1e-6).clip(min=1e-7))
        shifted = own * math.cos(self.margin) - sin * math.sin(self.margin)
        shifted = paddle.where(own > -math.cos(self.margin), shifted, own - self.margin * math.sin(self.margin))
        return self.scale * (cos + F.one_hot(labels, cos.shape[1]) * (shifted - own))


def _unit(x: paddle.Tensor, axis: int) -> paddle.Tensor:
    """Vectors along `axis` at length 1. One shorter than 1e-6 has no direction: it becomes 0, with gradient 0."""
    square = (x * x).sum(axis=axis, keepdim=True)
    shortest = paddle.full_like(square, 1e-12)
    inverse = paddle.rsqrt(paddle.maximum(square, shortest))  # finite where it is not used, so its gradient is 0
    return x * paddle.where(square > shortest, inverse, paddle.zeros_like(square))


def linear(spec: NetworkSpec, num_classes: int, params: Section) -> LinearHead:
    """Builder of the head linear."""
    return LinearHead(spec.embedding_size, num_classes)


def arc_margin(spec: NetworkSpec, num_classes: int, params: Section) -> ArcMargin:
    """Builder of the head arc_margin."""
    return ArcMargin(spec.embedding_size, num_classes, spec.arc_margin, spec.arc_scale)
