"""Necks and heads, between the backbone and the losses."""

from __future__ import annotations

import math

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.config.base import Section
from paddlex_feat.models.class_scores import CENTER_NOISE, MEANS_SCALE
from paddlex_feat.models.head_params import CosFaceParams, CosineParams, SubCenterArcFaceParams
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


def identity_neck(dim: int) -> dict[str, np.ndarray]:
    """Tensors with which either neck passes features on unchanged, by their names in the whole network.

    BNNeck divides by sqrt(1 + 1e-5), the least that it can.
    """
    zeros, ones = np.zeros(dim, np.float32), np.ones(dim, np.float32)
    linear_neck = {"fc.weight": np.eye(dim, dtype=np.float32), "fc.bias": zeros}
    bn_neck = {
        "feat_bn.weight": ones,
        "feat_bn.bias": zeros,
        "feat_bn._mean": zeros,
        "feat_bn._variance": ones,
    }
    return {f"neck.{name}": value for name, value in (linear_neck | bn_neck).items()}


class LinearHead(nn.Layer):
    """Class logits without bias, weights N(0, 0.001): float32 [N, D] -> float32 [N, C].

    Takes the labels like every head, and does not look at them.
    """

    def __init__(self, dim: int, num_classes: int):
        super().__init__()
        init = paddle.ParamAttr(initializer=nn.initializer.Normal(std=0.001))
        self.fc = nn.Linear(dim, num_classes, weight_attr=init, bias_attr=False)

    def forward(self, x: paddle.Tensor, labels: paddle.Tensor | None = None) -> paddle.Tensor:
        """Logits, float32 [N, C], of features float32 [N, D]; `labels` is ignored."""
        return self.fc(x)

    def set_class_means(self, means: np.ndarray) -> None:
        """Start at `means`, float32 [C, D] with rows of length 1; a row of zeros leaves that class as it is.

        Features of length sqrt(D), as BatchNorm gives, then have logits of 16 times their cosines: as sharp as a
        cosine classifier begins, which a vector of length 1 would exceed with long features.
        """
        _start_columns(self.fc.weight, means * (MEANS_SCALE / math.sqrt(means.shape[1])))

    def class_vectors(self) -> np.ndarray:
        """The vector of each class, float32 [C, 1, D]."""
        return _columns(self.fc.weight)


class CosineHead(nn.Layer):
    """What the heads with cosines share: class vectors, and logits that are scaled cosines with a margin.

    forward: float32 [N, D], int64 [N] -> float32 [N, C]. In evaluation mode, or without labels, it returns the
    cosines, neither shifted nor scaled. A zero feature has cosine 0 with every class.

    Args:
        margin: as `shift` of each head takes it.
        scale: factor on the cosines before the softmax.
        columns: number of vectors; None: one a class.

    Attributes:
        weight: float32 [D, columns], vectors of any length.
    """

    def __init__(self, dim: int, num_classes: int, margin: float, scale: float, columns: int | None = None):
        super().__init__()
        self.margin = margin
        self.scale = scale
        shape = [dim, columns or num_classes]
        self.weight = self.create_parameter(shape, default_initializer=nn.initializer.XavierNormal())

    def forward(self, x: paddle.Tensor, labels: paddle.Tensor | None = None) -> paddle.Tensor:
        """Logits, float32 [N, C], of features float32 [N, D]; cosines in evaluation mode, or without labels."""
        cos = self.cosines(x)
        if labels is None or not self.training:
            return cos
        return self.scale * (cos + self.shift(cos, labels))

    def cosines(self, x: paddle.Tensor) -> paddle.Tensor:
        """Cosines, float32 [N, C], of features float32 [N, D] with the classes."""
        return paddle.matmul(unit(x, axis=1), unit(self.weight, axis=0))

    def shift(self, cos: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """What training adds to cosines [N, C]: the margin is taken from the cosine of the own class."""
        return -self.margin * F.one_hot(labels, cos.shape[1])

    def set_class_means(self, means: np.ndarray) -> None:
        """Start at `means`, float32 [C, D] with rows of length 1; a row of zeros leaves that class as it is."""
        _start_columns(self.weight, means)

    def class_vectors(self) -> np.ndarray:
        """The vector of each class, float32 [C, 1, D]."""
        return _columns(self.weight)


class ArcMargin(CosineHead):
    """Additive angular margin (Deng et al., "ArcFace", arXiv:1801.07698).

    With t the angle between a feature and a class vector, the logit of the own class is
    scale * cos(t + margin), that of another scale * cos(t). Where t + margin would pass pi, and the
    cosine would rise again, it is scale * (cos t - margin * sin margin). sin t is taken as
    sqrt(1 - cos^2 t + 1e-6), whose derivative is finite at t = 0, as in PaddleClas. A cosine that TF32
    products round to 1.001 gives no NaN: the radicand is at least 1e-7.

    Args:
        margin: radians. The other arguments, and forward: see `CosineHead`.
    """

    def __init__(self, dim: int, num_classes: int, margin: float = 0.2, scale: float = 30.0):
        super().__init__(dim, num_classes, margin, scale)

    def shift(self, cos: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """See CosineHead. The margin is computed for the own class alone: N values, not N x C."""
        own = paddle.take_along_axis(cos, labels.unsqueeze(1), axis=1)
        sin = paddle.sqrt((1 - own * own + 1e-6).clip(min=1e-7))
        return F.one_hot(labels, cos.shape[1]) * (_add_angle(own, sin, self.margin) - own)


class CosineMargin(CosineHead):
    """Softmax of cosines, with a margin for the own class if asked for.

    The logit of the own class is scale * (cos t - margin), that of another scale * cos t. Margin 0 is the normalised
    softmax (Zhai and Wu, arXiv:1811.12649), scale being 1 / temperature; more is CosFace (Wang et al.,
    arXiv:1801.09414, equation 4).
    """


class SubCenterArcFace(CosineHead):
    """ArcFace with several centres a class, of which the nearest counts (Deng et al., "Sub-center ArcFace", ECCV 2020).

    The cosine of a class is the greatest of its centres'; the margin is that of `ArcMargin`, with the exact sine. A
    class of several looks, or with wrong labels in it, need not be pulled to one point.

    Args:
        margin: radians. sub_centers: K, centres a class. The other arguments, and forward: see `CosineHead`.

    Attributes:
        weight: float32 [D, C * K]; the centres of class c are columns c * K to c * K + K - 1.
    """

    def __init__(self, dim: int, num_classes: int, margin: float, scale: float, sub_centers: int):
        super().__init__(dim, num_classes, margin, scale, num_classes * sub_centers)
        self.sub_centers = sub_centers

    def cosines(self, x: paddle.Tensor) -> paddle.Tensor:
        """See CosineHead."""
        return super().cosines(x).reshape([len(x), -1, self.sub_centers]).max(axis=2)

    def shift(self, cos: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        """See CosineHead."""
        own = paddle.take_along_axis(cos, labels.unsqueeze(1), axis=1)
        sin = paddle.sqrt((1 - own * own).clip(min=1e-12))  # at angle 0 its gradient is 0, not infinite
        return F.one_hot(labels, cos.shape[1]) * (_add_angle(own, sin, self.margin) - own)

    def set_class_means(self, means: np.ndarray) -> None:
        """Start at `means`, float32 [C, D] with rows of length 1; a row of zeros leaves that class as it is.

        All centres of a class get its mean and a little noise each, from Paddle's generator: equal centres would stay
        equal.
        """
        centers = np.repeat(means, self.sub_centers, axis=0)
        noise = paddle.randn(centers.shape).numpy() * (CENTER_NOISE / math.sqrt(means.shape[1]))
        _start_columns(self.weight, np.where(_has_direction(centers), centers + noise, 0))

    def class_vectors(self) -> np.ndarray:
        """The centres of each class, float32 [C, K, D]."""
        return _columns(self.weight, self.sub_centers)


def _add_angle(cos: paddle.Tensor, sin: paddle.Tensor, margin: float) -> paddle.Tensor:
    """cos(t + margin) of cos t and sin t; cos t - margin * sin margin where t + margin would pass pi."""
    shifted = cos * math.cos(margin) - sin * math.sin(margin)
    return paddle.where(cos > -math.cos(margin), shifted, cos - margin * math.sin(margin))


def _has_direction(means: np.ndarray) -> np.ndarray:
    """Whether rows of [C, D] are not 0: bool [C, 1]."""
    known: np.ndarray = np.any(means, axis=1, keepdims=True)
    return known


def _start_columns(weight: paddle.Tensor, vectors: np.ndarray) -> None:
    """Give a weight [D, C] the rows of `vectors` [C, D] as columns, except for rows of zeros."""
    start = np.where(_has_direction(vectors), vectors, weight.numpy().T).T
    weight.set_value(start.astype(np.float32))


def _columns(weight: paddle.Tensor, count: int = 1) -> np.ndarray:
    """The columns of a weight [D, C * count], by class: float32 [C, count, D]."""
    vectors: np.ndarray = weight.numpy().T.astype(np.float32)
    return vectors.reshape(-1, count, vectors.shape[1])


def unit(x: paddle.Tensor, axis: int) -> paddle.Tensor:
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


def cosine(spec: NetworkSpec, num_classes: int, params: CosineParams) -> CosineMargin:
    """Builder of the head cosine."""
    return CosineMargin(spec.embedding_size, num_classes, 0.0, 1 / params.temperature)


def cosface(spec: NetworkSpec, num_classes: int, params: CosFaceParams) -> CosineMargin:
    """Builder of the head cosface."""
    return CosineMargin(spec.embedding_size, num_classes, params.margin, params.scale)


def subcenter_arcface(spec: NetworkSpec, num_classes: int, params: SubCenterArcFaceParams) -> SubCenterArcFace:
    """Builder of the head subcenter_arcface."""
    return SubCenterArcFace(spec.embedding_size, num_classes, params.margin, params.scale, params.sub_centers)
