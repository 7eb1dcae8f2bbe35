"""Cross-entropy with smoothed labels (Szegedy et al., arXiv:1512.00567)."""

from __future__ import annotations

import paddle
import paddle.nn.functional as F
from paddle import nn


class LabelSmoothingCrossEntropy(nn.Layer):
    """-sum_c q_c log softmax(z)_c with q = (1 - epsilon) onehot + epsilon / C, mean over the batch.

    forward: logits float32 [N, C], labels int64 [N] -> float32 scalar.
    """

    def __init__(self, epsilon: float = 0.1):
        super().__init__()
        self.epsilon = epsilon

    def forward(self, logits: paddle.Tensor, labels: paddle.Tensor) -> paddle.Tensor:
        log_p = F.log_softmax(logits, axis=-1)
        target = paddle.take_along_axis(log_p, labels.unsqueeze(1), axis=1).squeeze(1)
        return -((1 - self.epsilon) * target + self.epsilon * log_p.mean(axis=1)).mean()
