"""The weighted sum of the recipe's terms."""

from __future__ import annotations

import paddle
from paddle import nn

from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy
from paddlex_feat.losses.triplet_angular_margin import TripletAngularMarginLoss


class CombinedLoss(nn.Layer):
    """Classification loss on logits plus metric loss on features.

    forward: features float32 [N, D], logits float32 [N, C], labels int64 [N] -> scalar terms by
    name; "loss" is their weighted sum. A term of weight 0 is neither computed nor reported;
    without classification `logits` may be None.
    With metric_features [M, D] and metric_labels [M] the metric loss looks at these instead.
    """

    def __init__(
        self,
        classification: LabelSmoothingCrossEntropy,
        metric: TripletAngularMarginLoss,
        classification_weight: float = 1.0,
        metric_weight: float = 1.0,
    ):
        super().__init__()
        self.classification = classification
        self.metric = metric
        self.classification_weight = classification_weight
        self.metric_weight = metric_weight

    def forward(
        self,
        features: paddle.Tensor,
        logits: paddle.Tensor | None,
        labels: paddle.Tensor,
        metric_features: paddle.Tensor | None = None,
        metric_labels: paddle.Tensor | None = None,
    ) -> dict[str, paddle.Tensor]:
        terms: dict[str, paddle.Tensor] = {}
        total = paddle.zeros([])
        if self.classification_weight:
            terms["CELoss"] = self.classification(logits, labels)
            total = total + self.classification_weight * terms["CELoss"]
        if self.metric_weight:
            whole = (features, labels) if metric_features is None else (metric_features, metric_labels)
            terms["TripletAngularMarginLoss"] = self.metric(*whole)
            total = total + self.metric_weight * terms["TripletAngularMarginLoss"]
        terms["loss"] = total
        return terms
