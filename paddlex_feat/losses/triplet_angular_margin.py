"""TripletAngularMarginLoss of the PP-ShiTuV2 recipe."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.losses import LossContext, TripletAngularMarginParams
from paddlex_feat.losses.memory import References


class TripletAngularMarginLoss(nn.Layer):
    """Hardest triplet in the batch on cosine similarities, with bounds on both sides.

    With p_i the least similarity to the same label (the sample itself counts) and n_i the
    greatest similarity to another label:
        rank     = mean_i max(0, n_i - p_i + margin)
        absolute = mean_i max(0, positive - p_i) + mean_i max(0, n_i - negative)
        loss     = rank + absolute_weight * absolute
    PaddleClas's form of the last term reports 1 where the bound is met; here it is 0. The
    gradients are the same. Labels may occur any number of times; a batch of one label has
    no negatives, and its terms in n_i are 0. Images of past batches may be given as references:
    p_i and n_i are then over them too.

    forward: features float32 [N, D] of any norm, labels int64 [N] -> float32 scalar.
    """

    def __init__(self, margin: float = 0.5, absolute_weight: float = 0.1, positive: float = 0.8, negative: float = 0.4):
        super().__init__()
        self.margin = margin
        self.absolute_weight = absolute_weight
        self.positive = positive
        self.negative = negative

    def forward(
        self, features: paddle.Tensor, labels: paddle.Tensor, references: References | None = None
    ) -> paddle.Tensor:
        """Loss of features float32 [N, D] and labels int64 [N], compared with M references too: float32 scalar."""
        batch = References(F.normalize(features, axis=1), labels)
        compared = batch.and_then(references)
        similarity = batch.unit @ compared.unit.T
        same = labels.unsqueeze(1) == compared.labels.unsqueeze(0)
        # Cosines lie in [-1, 1]: +-2 and -4 never win a minimum or a maximum against one.
        hardest_positive = paddle.where(same, similarity, paddle.full_like(similarity, 2.0)).min(axis=1)
        hardest_negative = paddle.where(same, paddle.full_like(similarity, -4.0), similarity).max(axis=1)
        rank = F.relu(hardest_negative - hardest_positive + self.margin).mean()
        absolute = F.relu(self.positive - hardest_positive).mean() + F.relu(hardest_negative - self.negative).mean()
        return rank + self.absolute_weight * absolute


def triplet_angular_margin(params: TripletAngularMarginParams, context: LossContext) -> TripletAngularMarginLoss:
    """Builder of the loss triplet_angular_margin."""
    return TripletAngularMarginLoss(
        params.margin, params.absolute_weight, params.absolute_positive, params.absolute_negative
    )
