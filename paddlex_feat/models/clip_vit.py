"""The image tower of CLIP: a vision transformer whose averaged tokens are the embedding.

Architecture: A. Dosovitskiy et al., "An Image is Worth 16x16 Words", arXiv:2010.11929, with what
A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
arXiv:2103.00020, changed: a LayerNorm before the blocks, patches without bias, a projection.
The retrieval models of PP-ShiTuV2 average the projected tokens instead of taking the class token.

Tensor names are a contract: weights trained with PaddleClas load by name, and ours there.
"""

from __future__ import annotations

import logging
import math
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.config.base import Section
from paddlex_feat.errors import ConfigError
from paddlex_feat.models import clip_names
from paddlex_feat.models.heads import identity_neck
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.models.token_layers import GELU, LayerNorm, Linear, heads_attention, use_loops

if TYPE_CHECKING:
    from paddlex_feat.models.compiled_kernels import Loops

log = logging.getLogger(__name__)
Activation = Literal["gelu", "quick_gelu"]
Pooling = Literal["mean", "cls"]
_EPSILON = 1e-5  # of every LayerNorm
_MLP_RATIO = 4


def _truncated_normal() -> paddle.ParamAttr:
    return paddle.ParamAttr(initializer=nn.initializer.TruncatedNormal(std=0.02))


def _linear(cin: int, cout: int) -> Linear:
    return Linear(cin, cout, weight_attr=_truncated_normal())  # Paddle's bias starts at 0


class Attention(nn.Layer):
    """Multi-head self-attention (Vaswani et al., arXiv:1706.03762): float32 [N, T, D] -> [N, T, D].

    `qkv` yields queries, keys and values in this order, each split by head.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = _linear(width, 3 * width)
        self.proj = _linear(width, width)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, T, D] -> float32 [N, T, D]."""
        tokens, width = x.shape[1:]
        parts = self.qkv(x).reshape([-1, tokens, 3, self.heads, width // self.heads])
        return self.proj(heads_attention(parts, self.qkv.loops).reshape([-1, tokens, width]))


class QuickGELU(nn.Layer):
    """x sigmoid(1.702 x), the approximation of GELU in OpenAI's CLIP (Hendrycks and Gimpel, arXiv:1606.08415)."""

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 -> float32 of the same shape."""
        return x * F.sigmoid(1.702 * x)


class TransformerBlock(nn.Layer):
    """Attention and a two-layer perceptron, each after a LayerNorm and beside a shortcut: [N, T, D] -> [N, T, D]."""

    def __init__(self, width: int, heads: int, activation: Activation = "gelu"):
        super().__init__()
        self.norm1 = LayerNorm(width, _EPSILON)
        self.attn = Attention(width, heads)
        self.norm2 = LayerNorm(width, _EPSILON)
        self.mlp = nn.Sequential(
            ("fc1", _linear(width, _MLP_RATIO * width)),
            ("act", QuickGELU() if activation == "quick_gelu" else GELU()),
            ("fc2", _linear(_MLP_RATIO * width, width)),
        )

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, T, D] -> float32 [N, T, D]."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CLIPViT(nn.Layer):
    """The backbone of PP-ShiTuV2_rec_CLIP_vit_base and _large.

    forward: float32 [N, 3, input_size, input_size] -> float32 [N, embedding_size].

    Args:
        input_size, patch_size: pixels; the positions are learnt for this many patches.
        width: channels of a token. depth: blocks. heads: of every block's attention.
        embedding_size: columns of the projection.
        class_token: does the class token take part in the mean? Base leaves it out, large does not.
        activation: "gelu", the exact one, or "quick_gelu", of OpenAI's weights.
        pooling: "mean" of the projected tokens, or "cls", the projected class token, as CLIP was trained.

    Raises ConfigError if the patches do not tile the image or the heads do not share the width.
    """

    def __init__(
        self,
        input_size: int,
        patch_size: int,
        width: int,
        depth: int,
        heads: int,
        embedding_size: int = 512,
        class_token: bool = False,
        activation: Activation = "gelu",
        pooling: Pooling = "mean",
    ):
        super().__init__()
        _check(input_size, patch_size, width, heads)
        self.grid = input_size // patch_size
        self.averages_class_token = class_token
        self.pooling = pooling
        self.pos_embed = self.create_parameter([1, self.grid**2 + 1, width], attr=_truncated_normal())
        self.cls_token = self.create_parameter([1, 1, width], attr=_truncated_normal())
        self.proj = self.create_parameter(
            [width, embedding_size], default_initializer=nn.initializer.Normal(std=width**-0.5)
        )
        conv = nn.Conv2D(3, width, patch_size, stride=patch_size, bias_attr=False)
        self.patch_embed = nn.Sequential(("proj", conv))
        self.ln_pre = LayerNorm(width, _EPSILON)
        self.blocks = nn.LayerList([TransformerBlock(width, heads, activation) for _ in range(depth)])
        self.norm = LayerNorm(width, _EPSILON)

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """Embeddings, float32 [N, embedding_size], of images float32 [N, 3, input_size, input_size]."""
        patches = self.patch_embed(x).flatten(2).transpose([0, 2, 1])
        first = self.cls_token.expand([patches.shape[0], -1, -1])
        x = self.ln_pre(paddle.concat([first, patches], axis=1) + self.pos_embed)
        for block in self.blocks:
            x = block(x)
        if self.pooling == "cls":
            x = x[:, :1]  # whose mean it is
        elif not self.averages_class_token:
            x = x[:, 1:]
        return paddle.matmul(self.norm(x), self.proj).mean(axis=1)

    def use_loops(self, loops: Loops) -> None:
        """Train by compiled loops from now on."""
        use_loops(self, loops)

    def layers_by_depth(self) -> list[list[str]]:
        """Names by depth, for learning rates that fall towards the image; see training.param_groups.Layered."""
        first = ["pos_embed", "cls_token", "patch_embed", "ln_pre"]
        return [first, *([f"blocks.{i}"] for i in range(len(self.blocks))), ["norm", "proj"]]

    def adapt_state(self, state: dict[str, Any], prefix: str = "") -> bool:
        """Rename the visual tower of another program and resample its positions to this network's grid.

        Of a file of OpenAI's CLIP, open_clip, MLCD or Hugging Face (`clip_names`) all but the visual tower is dropped.
        A tower without projection gets the identity; so does the neck.

        Args:
            state: changed in place; see `_resample` for the positions.
            prefix: of the backbone's names in `state`.

        Returns whether the positions were resampled.

        Raises:
            WeightsError: the tower of another program does not fit; it lists what.
        """
        clip_names.refuse_unicom(state, prefix)
        tower = clip_names.read_tower(state)
        if tower is None:
            return self._resample(state, f"{prefix}pos_embed")
        resampled = self._resample(tower.tensors, "pos_embed")
        size, width = self.proj.shape[1], self.proj.shape[0]
        if "proj" not in tower.tensors and size == width:
            tower.tensors["proj"] = np.eye(size, dtype=np.float32)
        clip_names.require_fit(tower, {name: tuple(tensor.shape) for name, tensor in self.state_dict().items()})
        log.info(
            "The file holds the visual tower of another program. The neck passes features on unchanged, and %d tensors "
            "besides the tower (text, logit scale) are ignored.",
            tower.ignored,
        )
        if self.pooling != "cls":
            log.warning("Such towers were trained with Model.pooling=cls; it is %s here.", self.pooling)
        state.clear()
        state.update({prefix + name: value for name, value in tower.tensors.items()} | identity_neck(size))
        return resampled

    def _resample(self, state: dict[str, Any], name: str) -> bool:
        """Resample positions that were learnt at another image size to this network's grid.

        The class token's position is kept. The grid is resampled bicubically without aligned
        corners, as PaddleClas does; it is taken to be square. Any other value is left unchanged, and
        the comparison of shapes reports it.

        Args:
            state: replaced at `name`, float [1, 1 + g*g, width], by float32 [1, 1 + grid*grid, width].
            name: of the positions.

        Returns whether the positions were resampled.
        """
        value, width = state.get(name), self.pos_embed.shape[2]
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or value.ndim != 3:
            return False
        side = math.isqrt(max(value.shape[1] - 1, 0))
        if value.shape != (1, side**2 + 1, width) or side in (0, self.grid):
            return False
        positions = value.astype(np.float32)
        grid = positions[:, 1:].reshape([1, side, side, width]).transpose([0, 3, 1, 2])
        size = [self.grid, self.grid]
        with paddle.no_grad():
            new = F.interpolate(paddle.to_tensor(grid), size=size, mode="bicubic", align_corners=False).numpy()
        new = new.reshape([1, width, self.grid**2]).transpose([0, 2, 1])
        state[name] = np.concatenate([positions[:, :1], new], axis=1)
        return True


def _check(input_size: int, patch_size: int, width: int, heads: int) -> None:
    if input_size < patch_size or input_size % patch_size:
        below = input_size // patch_size * patch_size
        near = [str(size) for size in (below, below + patch_size) if size]
        raise ConfigError(
            f"Images of {input_size} px cannot be cut into patches of {patch_size} px.",
            where="Train.input_size",
            fix=f"Use a multiple of the patch size: {' or '.join(near)}.",
            code="input-size",
        )
    if width % heads:
        raise ConfigError(
            f"{heads} attention heads cannot share {width} channels equally.",
            where="Model.width",
            fix="Use a multiple of Model.heads.",
            code="attention-heads",
        )


def clip_vit(spec: NetworkSpec, params: Section) -> CLIPViT:
    """Builder of the backbone CLIP_vit."""
    return CLIPViT(
        spec.input_size,
        spec.patch_size,
        spec.width,
        spec.depth,
        spec.heads,
        embedding_size=spec.embedding_size,
        class_token=spec.class_token,
        activation=spec.activation,
        pooling="cls" if spec.pooling == "cls" else "mean",
    )
