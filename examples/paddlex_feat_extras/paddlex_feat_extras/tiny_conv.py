"""A small convolutional backbone."""

from __future__ import annotations

import itertools

import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.models import NetworkSpec
from paddlex_feat_extras import TinyConvParams


class TinyConv(nn.Layer):
    """Three convolutions of stride 2 with BatchNorm and ReLU, a global average, a projection.

    forward: float32 [N, 3, S, S] -> float32 [N, embedding_size].
    """

    def __init__(self, embedding_size: int, width: int):
        super().__init__()
        channels = [3, width, 2 * width, 4 * width]
        self.blocks = nn.Sequential(
            *(
                nn.Sequential(
                    nn.Conv2D(cin, cout, 3, stride=2, padding=1, bias_attr=False), nn.BatchNorm2D(cout), nn.ReLU()
                )
                for cin, cout in itertools.pairwise(channels)
            )
        )
        self.project = nn.Linear(channels[-1], embedding_size)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Compute the embedding."""
        return self.project(F.adaptive_avg_pool2d(self.blocks(x), 1).flatten(1))


def tiny_conv(spec: NetworkSpec, params: TinyConvParams) -> TinyConv:
    """Builder of the backbone tiny_conv."""
    return TinyConv(spec.embedding_size, params.width)
