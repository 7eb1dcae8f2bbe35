"""PP-LCNetV2-base as PP-ShiTuV2 uses it for retrieval.

Architecture: C. Cui et al., "PP-LCNet: A Lightweight CPU Convolutional Neural Network",
arXiv:2109.15099, in its second version (re-parameterised depthwise convolutions, split
pointwise convolutions, squeeze-and-excitation in stage 3). The retrieval variant keeps the
last stage at stride 1 (a 14x14 map at 224 px) and ends in a linear 1x1 convolution.

Tensor names are a contract: weights trained with PaddleClas load by name, and ours there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import paddle
import paddle.nn.functional as F
from paddle import nn
from paddle.regularizer import L2Decay

from paddlex_feat.config.base import Section
from paddlex_feat.models.channels_last import pixel_mean, put_channels_last, scale_channels
from paddlex_feat.models.normalized_sum import NONE, RELU, compile_norms, normalized_sum
from paddlex_feat.models.pooling import adapt_pooling, pooling
from paddlex_feat.models.spec import NetworkSpec

if TYPE_CHECKING:
    from paddlex_feat.models.compiled_kernels import Loops

_DELTA_NOISE = 0.5  # L2 norm of the noise beside a depthwise kernel's centre of 1


def _undecayed() -> paddle.ParamAttr:
    """A BatchNorm scale or shift: its own zero decay overrides the optimizer's."""
    return paddle.ParamAttr(regularizer=L2Decay(0.0))


class ConvBN(nn.Layer):
    """Convolution without bias, BatchNorm, optional ReLU; "same" padding for odd kernels."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True):
        super().__init__()
        self.conv = nn.Conv2D(
            cin,
            cout,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            weight_attr=paddle.ParamAttr(initializer=nn.initializer.KaimingNormal()),
            bias_attr=False,
        )
        self.bn = nn.BatchNorm2D(cout, weight_attr=_undecayed(), bias_attr=_undecayed())
        self.relu = relu

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, cin, H, W] -> float32 [N, cout, H / stride, W / stride], rounded up for odd kernels."""
        return normalized_sum([self.conv(x)], [self.bn], RELU if self.relu else NONE)


class SqueezeExcite(nn.Layer):
    """Channel gate: global average -> 1x1 -> ReLU -> 1x1 -> sigmoid (arXiv:1709.01507)."""

    def __init__(self, channels: int, reduction: int = 4):
        super().__init__()
        self.conv1 = nn.Conv2D(channels, channels // reduction, 1)
        self.conv2 = nn.Conv2D(channels // reduction, channels, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, C, H, W] -> float32 [N, C, H, W]."""
        last = self.conv1._data_format == "NHWC"  # then float32 [N, H, W, C]
        gate = self.conv2(F.relu(self.conv1(pixel_mean(x) if last else F.adaptive_avg_pool2d(x, 1))))
        return scale_channels(x, F.sigmoid(gate)) if last else x * F.sigmoid(gate)


class Block(nn.Layer):
    """Depthwise then pointwise convolution.

    Args:
        split_pointwise: two pointwise convolutions with half the channels between them.
        branches: train parallel depthwise kernels (5, 3 and, at stride 1, 1), which
            `fuse()` adds up into the one kernel `dw_conv` (RepVGG, arXiv:2101.03697).
        residual: add the input; only where the shapes allow it.
    """

    def __init__(
        self,
        cin: int,
        cout: int,
        stride: int = 1,
        kernel: int = 3,
        split_pointwise: bool = False,
        branches: bool = False,
        squeeze_excite: bool = False,
        residual: bool = False,
    ):
        super().__init__()
        self.fused = False
        self.branches = branches
        self.split_pointwise = split_pointwise
        self.residual = residual and stride == 1 and cin == cout
        if branches:
            sizes = [k for k in range(kernel, 0, -2) if k > 1 or stride == 1]
            self.dw_conv_list = nn.LayerList([ConvBN(cin, cin, k, stride, groups=cin, relu=False) for k in sizes])
            # Holds the fused kernel. It is part of the weight files even while it is unused. It never
            # gets a gradient, and says so: DataParallel would wait for one.
            frozen = paddle.ParamAttr(trainable=False)
            self.dw_conv = nn.Conv2D(
                cin,
                cin,
                kernel,
                stride=stride,
                padding=kernel // 2,
                groups=cin,
                weight_attr=frozen,
                bias_attr=frozen,
            )
        else:
            self.dw_conv = ConvBN(cin, cin, kernel, stride, groups=cin)
        self.se = SqueezeExcite(cin) if squeeze_excite else None
        if split_pointwise:
            self.pw_conv_1 = ConvBN(cin, cout // 2, 1)
            self.pw_conv_2 = ConvBN(cout // 2, cout, 1)
        else:
            self.pw_conv = ConvBN(cin, cout, 1)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, cin, H, W] -> float32 [N, cout, H / stride, W / stride], rounded up."""
        y = self._depthwise(x)
        if self.se is not None:
            y = self.se(y)
        y = self.pw_conv_2(self.pw_conv_1(y)) if self.split_pointwise else self.pw_conv(y)
        return x + y if self.residual else y

    def _depthwise(self, x: paddle.Tensor) -> paddle.Tensor:
        if not self.branches:
            return self.dw_conv(x)
        if self.fused:
            return F.relu(self.dw_conv(x))
        branches = self.dw_conv_list
        return normalized_sum([branch.conv(x) for branch in branches], [branch.bn for branch in branches])

    @paddle.no_grad()
    def fuse(self) -> None:
        """Fold every branch with its BatchNorm into `dw_conv`; right for evaluation only."""
        if not self.branches:
            return
        size = self.dw_conv.weight.shape[-1]
        kernel = paddle.zeros_like(self.dw_conv.weight)
        bias = paddle.zeros_like(self.dw_conv.bias)
        for branch in self.dw_conv_list:
            bn, weight = branch.bn, branch.conv.weight
            scale = bn.weight / paddle.sqrt(bn._variance + bn._epsilon)
            margin = (size - weight.shape[-1]) // 2
            kernel += F.pad(weight * scale.reshape([-1, 1, 1, 1]), [margin] * 4)
            bias += bn.bias - bn._mean * scale
        self.dw_conv.weight.set_value(kernel)
        self.dw_conv.bias.set_value(bias)
        self.fused = True

    def unfuse(self) -> None:
        """Compute with the branches again."""
        self.fused = False


class PPLCNetV2ShiTu(nn.Layer):
    """The backbone of PP-ShiTuV2_rec.

    forward: float32 [N, 3, H, W] -> float32 [N, embedding_size]; H and W of at least 16 px.

    Args:
        embedding_size: output channels of the last convolution.
        dropout: probability in Paddle's downscale-in-infer mode: training only zeroes,
            evaluation multiplies by 1 - dropout.
        pool: "mean" or "gem", before the last convolution.

    Attributes:
        channels_last: whether the maps between images and pooling are [N, H, W, C]; the interface stays.
    """

    # (blocks, output channels, options): strides 2, 2, 2 and, in the last stage, 1.
    STAGES: tuple[tuple[int, int, dict[str, Any]], ...] = (
        (2, 128, {}),
        (2, 256, {}),
        (6, 512, {"kernel": 5, "split_pointwise": True, "branches": True, "squeeze_excite": True}),
        (2, 1024, {"kernel": 5, "branches": True, "residual": True}),
    )

    def __init__(self, embedding_size: int = 512, dropout: float = 0.2, pool: str = "mean"):
        super().__init__()
        self.stem = nn.Sequential(ConvBN(3, 32, 3, stride=2), Block(32, 64))
        self.stages = nn.LayerList()
        channels = 64
        for i, (blocks, cout, options) in enumerate(self.STAGES):
            first_stride = 1 if i == len(self.STAGES) - 1 else 2
            stage = [Block(channels, cout, first_stride, **options)]
            stage += [Block(cout, cout, 1, **options) for _ in range(blocks - 1)]
            self.stages.append(nn.Sequential(*stage))
            channels = cout
        self.pool = pooling(pool)
        self.last_conv = nn.Conv2D(channels, embedding_size, 1)
        self.dropout = nn.Dropout(dropout, mode="downscale_in_infer")
        self.channels_last = False

    def use_channels_last(self) -> None:
        """Compute with channels last from now on; weights and their names stay."""
        self.channels_last = True
        put_channels_last(self.stem, self.stages)

    def use_loops(self, loops: Loops) -> None:
        """Train with compiled loops from now on, where channels are last."""
        compile_norms(self, loops)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Embeddings, float32 [N, embedding_size], of images float32 [N, 3, H, W]."""
        x = self.stem(x.transpose([0, 2, 3, 1]) if self.channels_last else x)
        for stage in self.stages:
            x = stage(x)
        if self.channels_last:
            x = x.transpose([0, 3, 1, 2])
        x = self.last_conv(self.pool(x))
        return self.dropout(x).flatten(1)

    @paddle.no_grad()
    def init_delta_orthogonal(self) -> None:
        """Start as a network through which images remain distinct.

        With Kaiming's random weights, thirty layers of convolution, BatchNorm and ReLU without a shortcut map all
        images to nearly the same feature, and the loss stays at chance for hundreds of steps. Here pointwise weights
        are orthogonal, depthwise kernels a centre of 1 with some noise (L. Xiao et al., arXiv:1806.05393), and
        BatchNorm shifts most values beyond the ReLU's kink.
        """
        orthogonal = nn.initializer.Orthogonal()
        for layer in self.sublayers():
            if not isinstance(layer, ConvBN):
                continue
            weight = layer.conv.weight
            if weight.shape[1] == 1:
                size = weight.shape[-1]
                nn.initializer.Normal(std=_DELTA_NOISE / size)(weight)
                centre = paddle.zeros_like(weight)
                centre[:, :, size // 2, size // 2] = 1.0
                weight.set_value(weight + centre)
            elif weight.shape[-1] == 1:
                orthogonal(weight)
            # Three branches without a ReLU of their own are added up before one.
            layer.bn.bias.set_value(paddle.full_like(layer.bn.bias, 1.0 if layer.relu else 1 / 3))

    def adapt_state(self, state: dict[str, Any], prefix: str) -> None:
        """Start GeM at the mean where the weights were trained with it."""
        adapt_pooling(self.pool, state, f"{prefix}pool.")


def pplcnetv2(spec: NetworkSpec, params: Section) -> PPLCNetV2ShiTu:
    """Builder of the backbone PPLCNetV2_base_ShiTu."""
    return PPLCNetV2ShiTu(spec.embedding_size, spec.dropout, spec.pooling)
