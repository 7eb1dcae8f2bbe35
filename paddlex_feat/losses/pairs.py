"""Losses on the pairs of a batch: supervised contrastive, Multi-Similarity, Circle, triplet with batch-hard mining."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.losses import LossContext
from paddlex_feat.losses.memory import References
from paddlex_feat.losses.params import CircleParams, MultiSimilarityParams, SupConParams, TripletBatchHardParams
from paddlex_feat.losses.rows import log1p_sum_exp, log_sum_exp, mean_above_zero, softplus, unit_rows


class PairLoss(nn.Layer, ABC):
    """Every image of a batch is an anchor, which is compared with all others: its class and all other classes.

    forward: features [N, D] of any norm, labels int64 [N] -> float32 scalar. It is computed in float32 for features of
    half precision and under autocast, too. Labels may occur any number of times. Where there is nothing to compare,
    the value is 0 with gradient 0. The images of past batches may be given as references: anchors are compared with
    them as well, but they are no anchors.
    """

    def forward(
        self, features: paddle.Tensor, labels: paddle.Tensor, references: References | None = None
    ) -> paddle.Tensor:
        """Loss of features [N, D] and labels int64 [N], compared with M references too: float32 scalar."""
        with paddle.amp.auto_cast(enable=False):
            batch = References(unit_rows(features), labels)
            compared = batch.and_then(references)
            same = labels.unsqueeze(1) == compared.labels.unsqueeze(0)
            others = paddle.arange(len(labels)).unsqueeze(1) != paddle.arange(len(compared.labels)).unsqueeze(0)
            return self.compare(batch.unit, compared.unit, same & others, ~same)

    @abstractmethod
    def compare(
        self, unit: paddle.Tensor, compared: paddle.Tensor, positive: paddle.Tensor, negative: paddle.Tensor
    ) -> paddle.Tensor:
        """The loss, a scalar.

        Args:
            unit: features of the anchors at length 1, float32 [N, D].
            compared: `unit` itself, or its rows and those of the references, float32 [N + M, D].
            positive: whether an anchor and another image have one class, bool [N, N + M].
            negative: whether an anchor and an image are of different classes, bool [N, N + M].
        """


class SupConLoss(PairLoss):
    """Supervised contrastive loss L_out (Khosla et al., arXiv:2004.11362, equation 2).

    With s the cosines and t the temperature, the loss of anchor i with positives P(i) is the mean over p in P(i) of
        -log(exp(s_ip / t) / sum over all j != i of exp(s_ij / t)),
    and the result is the mean over the anchors whose loss is above 0. Images of one class have loss 0.
    """

    def __init__(self, temperature: float = 0.1):
        super().__init__()
        self.temperature = temperature

    def compare(
        self, unit: paddle.Tensor, compared: paddle.Tensor, positive: paddle.Tensor, negative: paddle.Tensor
    ) -> paddle.Tensor:
        """See PairLoss."""
        z = (unit @ compared.T - 1) / self.temperature  # minus 1: digits for the logarithm of a sum of nearly 1
        log_p = z - log_sum_exp(z, positive | negative).unsqueeze(1)
        total = paddle.where(positive, log_p, paddle.zeros_like(z)).sum(axis=1)
        losses = -total / positive.astype(z.dtype).sum(axis=1).clip(min=1)
        return mean_above_zero(losses * negative.any().astype(z.dtype))


class MultiSimilarityLoss(PairLoss):
    """Multi-Similarity loss (Wang et al., arXiv:1904.06627, equation 10) on mined pairs (equations 11 and 12).

    With s the cosines, the loss of an anchor is
        1/alpha log(1 + sum over positives of exp(-alpha (s - base)))
        + 1/beta log(1 + sum over negatives of exp(beta (s - base))),
    and the result is the mean over all anchors. A positive counts if s - epsilon is below the greatest s of a
    negative, a negative if s + epsilon is above the least s of a positive, so an anchor without either adds nothing.
    With `epsilon` None all pairs count, and an anchor without one kind has the sum over the other.
    """

    def __init__(self, alpha: float = 2.0, beta: float = 50.0, base: float = 0.5, epsilon: float | None = 0.1):
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.base = base
        self.epsilon = epsilon

    def compare(
        self, unit: paddle.Tensor, compared: paddle.Tensor, positive: paddle.Tensor, negative: paddle.Tensor
    ) -> paddle.Tensor:
        """See PairLoss."""
        cos = unit @ compared.T
        if self.epsilon is not None:
            fixed = cos.detach()
            # A cosine lies in [-1, 1] and epsilon in [0, 2]: against +-4 no pair counts.
            weakest = paddle.where(positive, fixed, paddle.full_like(fixed, 4.0)).min(axis=1, keepdim=True)
            strongest = paddle.where(negative, fixed, paddle.full_like(fixed, -4.0)).max(axis=1, keepdim=True)
            positive = positive & (fixed - self.epsilon < strongest)
            negative = negative & (fixed + self.epsilon > weakest)
        pull = log1p_sum_exp(-self.alpha * (cos - self.base), positive) / self.alpha
        push = log1p_sum_exp(self.beta * (cos - self.base), negative) / self.beta
        return (pull + push).mean()


class CircleLoss(PairLoss):
    """Circle loss on pairs (Sun et al., arXiv:2002.10857, equation 6 with its section 3.2).

    With s the cosines, a_p = max(0, 1 + m - s) and a_n = max(0, s + m), both without gradient, the loss of an anchor is
        log(1 + sum over positives of exp(-gamma a_p (s - 1 + m)) * sum over negatives of exp(gamma a_n (s - m))),
    and the result is the mean over the anchors whose loss is above 0.
    """

    def __init__(self, m: float = 0.4, gamma: float = 80.0):
        super().__init__()
        self.m = m
        self.gamma = gamma

    def compare(
        self, unit: paddle.Tensor, compared: paddle.Tensor, positive: paddle.Tensor, negative: paddle.Tensor
    ) -> paddle.Tensor:
        """See PairLoss."""
        cos = unit @ compared.T
        fixed = cos.detach()
        pull = -self.gamma * F.relu(1 + self.m - fixed) * (cos - 1 + self.m)
        push = self.gamma * F.relu(fixed + self.m) * (cos - self.m)
        # Without positives or negatives one sum is 0, its logarithm about -1e30, the softplus 0.
        return mean_above_zero(softplus(log_sum_exp(pull, positive) + log_sum_exp(push, negative)))


class TripletBatchHardLoss(PairLoss):
    """Triplet loss on the hardest triplet of each anchor (Hermans et al., arXiv:1703.07737, equation 5).

    With p the greatest distance to an image of the anchor's class and n the least to one of another class, the loss of
    an anchor that has both is max(0, p - n + margin), or log(1 + exp(p - n)) with `margin` None. The result is the
    mean over the anchors whose loss is above 0.

    Args:
        margin: of the hinge; None: the soft margin.
        distance: "cosine": 1 - cosine; "euclidean": of the features at length 1.
    """

    def __init__(self, margin: float | None = 0.2, distance: Literal["cosine", "euclidean"] = "cosine"):
        super().__init__()
        self.margin = margin
        self.distance = distance

    def compare(
        self, unit: paddle.Tensor, compared: paddle.Tensor, positive: paddle.Tensor, negative: paddle.Tensor
    ) -> paddle.Tensor:
        """See PairLoss."""
        cos = (unit @ compared.T).detach()  # chooses; at length 1 both distances have one order
        farthest = paddle.where(positive, cos, paddle.full_like(cos, 2.0)).argmin(axis=1)
        nearest = paddle.where(negative, cos, paddle.full_like(cos, -2.0)).argmax(axis=1)
        violation = self._distances(unit, compared, farthest) - self._distances(unit, compared, nearest)
        losses = softplus(violation) if self.margin is None else F.relu(violation + self.margin)
        complete = positive.any(axis=1) & negative.any(axis=1)
        return mean_above_zero(losses * complete.astype(losses.dtype))

    def _distances(self, unit: paddle.Tensor, compared: paddle.Tensor, others: paddle.Tensor) -> paddle.Tensor:
        """Distance of each row to the row of `compared` that `others`, int64 [N], names: [N]."""
        other = paddle.gather(compared, others)
        if self.distance == "cosine":
            return 1 - (unit * other).sum(axis=1)
        # From the difference: 2 - 2 cos has no digits left between near duplicates. Below 1e-6 the gradient is 0.
        return ((unit - other) ** 2).sum(axis=1).clip(min=1e-12).sqrt()


def supcon(params: SupConParams, context: LossContext) -> SupConLoss:
    """Builder of the loss supcon."""
    return SupConLoss(params.temperature)


def multi_similarity(params: MultiSimilarityParams, context: LossContext) -> MultiSimilarityLoss:
    """Builder of the loss multi_similarity."""
    return MultiSimilarityLoss(params.alpha, params.beta, params.base, params.epsilon)


def circle(params: CircleParams, context: LossContext) -> CircleLoss:
    """Builder of the loss circle."""
    return CircleLoss(params.m, params.gamma)


def triplet_batch_hard(params: TripletBatchHardParams, context: LossContext) -> TripletBatchHardLoss:
    """Builder of the loss triplet_batch_hard."""
    return TripletBatchHardLoss(params.margin, params.distance)
