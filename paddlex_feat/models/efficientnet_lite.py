"""EfficientNet-Lite0 (Tan and Le, arXiv:1905.11946; the Lite variant has ReLU6 and no squeeze-and-excitation)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.config.base import Section
from paddlex_feat.models.channels_last import put_channels_last
from paddlex_feat.models.normalized_sum import NONE, RELU6, compile_norms, normalized_sum
from paddlex_feat.models.pooling import adapt_pooling, pooling
from paddlex_feat.models.spec import NetworkSpec

if TYPE_CHECKING:
    from paddlex_feat.models.compiled_kernels import Loops

FEATURES = 1280  # channels of the last map
STRIDE = 32
_NECK = "neck.fc"
# (blocks, kernel, stride of the first, expansion of the channels, output channels) of each stage
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)


class ConvBN(nn.Layer):
    """Convolution without bias, BatchNorm, optional ReLU6.

    Padding is TensorFlow's "SAME" for an input that the stride divides: one pixel less at the top and the left where
    the stride is 2, for the weights were trained so.
    """

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True):
        super().__init__()
        total = kernel - stride
        before, after = total // 2, total - total // 2
        self.conv = nn.Conv2D(
            cin,
            cout,
            kernel,
            stride,
            padding=[before, after, before, after],
            groups=groups,
            weight_attr=paddle.ParamAttr(initializer=nn.initializer.KaimingNormal()),
            bias_attr=False,
        )
        self.bn = nn.BatchNorm2D(cout, momentum=0.99, epsilon=1e-3)
        self.relu = relu
        self.fused = False

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, cin, H, W] -> float32 [N, cout, H / stride, W / stride]."""
        if self.fused:
            conv = self.conv
            x = F.conv2d(
                x,
                conv.weight,
                self.bn.bias,
                conv._stride,
                conv._padding,
                groups=conv._groups,
                data_format=conv._data_format,
            )
            return F.relu6(x) if self.relu else x
        return normalized_sum([self.conv(x)], [self.bn], RELU6 if self.relu else NONE)

    @paddle.no_grad()
    def fuse(self) -> None:
        """Fold BatchNorm into the convolution's kernel and its own shift; right for evaluation only.

        Paddle Inference would do it at every start of a process, for half a second.
        """
        bn, weight = self.bn, self.conv.weight
        scale = bn.weight / paddle.sqrt(bn._variance + bn._epsilon)
        weight.set_value(weight * scale.reshape([-1, 1, 1, 1]))
        bn.bias.set_value(bn.bias - bn._mean * scale)
        self.fused = True

    def unfuse(self) -> None:
        """Compute with BatchNorm again; `fuse` has changed the weights, so load them first."""
        self.fused = False


class InvertedResidual(nn.Layer):
    """Expand by a 1 x 1 convolution, filter each channel, project; with a shortcut where the shape stays."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = cin * expansion
        self.expand = ConvBN(cin, wide, 1) if expansion > 1 else None
        self.depthwise = ConvBN(wide, wide, kernel, stride, groups=wide)
        self.project = ConvBN(wide, cout, 1, relu=False)
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, cin, H, W] -> float32 [N, cout, H / stride, W / stride]."""
        y = self.expand(x) if self.expand is not None else x
        y = self.project(self.depthwise(y))
        return x + y if self.shortcut else y


class EfficientNetLite0(nn.Layer):
    """The backbone of EfficientNet_Lite0_rec: the mean of the last map, 1280 numbers, as ImageNet left them.

    forward: float32 [N, 3, H, W] -> float32 [N, embedding_size]; H and W multiples of 32 px.

    Args:
        embedding_size: 1280, or fewer or more by a linear layer that starts as a random projection with orthogonal
            rows, which keeps angles as well as chance allows.
        pool: "mean" or "gem".

    Attributes:
        channels_last: whether the maps between images and pooling are [N, H, W, C]; the interface stays.
    """

    def __init__(self, embedding_size: int = FEATURES, pool: str = "mean"):
        super().__init__()
        self.stem = ConvBN(3, 32, 3, stride=2)
        blocks, channels = [], 32
        for count, kernel, stride, expansion, cout in _STAGES:
            for number in range(count):
                blocks.append(InvertedResidual(channels, cout, kernel, 1 if number else stride, expansion))
                channels = cout
        self.blocks = nn.LayerList(blocks)
        self.last_conv = ConvBN(channels, FEATURES, 1)
        self.pool = pooling(pool)
        self.fc = None
        if embedding_size != FEATURES:
            init = paddle.ParamAttr(initializer=nn.initializer.Orthogonal())
            self.fc = nn.Linear(FEATURES, embedding_size, weight_attr=init, bias_attr=False)
        self.channels_last = False

    def use_channels_last(self) -> None:
        """Compute with channels last from now on; weights and their names stay."""
        self.channels_last = True
        put_channels_last(self)

    def use_loops(self, loops: Loops) -> None:
        """Train with compiled loops from now on, where channels are last."""
        compile_norms(self, loops)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Embeddings, float32 [N, embedding_size], of images float32 [N, 3, H, W]."""
        x = self.stem(x.transpose([0, 2, 3, 1]) if self.channels_last else x)
        for block in self.blocks:
            x = block(x)
        x = self.last_conv(x)
        x = self.pool(x.transpose([0, 3, 1, 2]) if self.channels_last else x).flatten(1)
        return self.fc(x) if self.fc is not None else x

    def adapt_state(self, state: dict[str, Any], prefix: str) -> None:
        """Give the tensors of PyTorch's EfficientNet-Lite their names here; the neck passes features on unchanged."""
        if "_conv_stem.weight" not in state:
            adapt_pooling(self.pool, state, f"{prefix}pool.")
            return
        foreign = dict(state)
        state.clear()
        for name, value in foreign.items():
            own = _own_name(name)
            if own:
                state[prefix + own] = value
        if self.fc is not None:
            state[f"{prefix}fc.weight"] = self.fc.weight.numpy()
        size = FEATURES if self.fc is None else self.fc.weight.shape[1]
        adapt_pooling(self.pool, state, f"{prefix}pool.")
        state.update({f"{_NECK}.weight": np.eye(size, dtype=np.float32), f"{_NECK}.bias": np.zeros(size, np.float32)})


_PARTS = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.bn",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.bn",
    "_project_conv": "project.conv",
    "_bn2": "project.bn",
}
_TOP = {"_conv_stem": "stem.conv", "_bn0": "stem.bn", "_conv_head": "last_conv.conv", "_bn1": "last_conv.bn"}
_KINDS = {"weight": "weight", "bias": "bias", "running_mean": "_mean", "running_var": "_variance"}


def _own_name(name: str) -> str | None:
    """The name of a tensor here; None for what only classifies, or counts."""
    found = re.fullmatch(r"(?:_blocks\.(\d+)\.)?(_\w+)\.(\w+)", name)
    if not found or found[3] not in _KINDS:
        return None
    block, part, kind = found[1], found[2], _KINDS[found[3]]
    if block is None:
        return f"{_TOP[part]}.{kind}" if part in _TOP else None
    return f"blocks.{block}.{_PARTS[part]}.{kind}" if part in _PARTS else None


def efficientnet_lite0(spec: NetworkSpec, params: Section) -> EfficientNetLite0:
    """Builder of the backbone EfficientNet_Lite0."""
    return EfficientNetLite0(spec.embedding_size, spec.pooling)
