"""The training step of PP-ShiTuV2_rec and EfficientNet_Lite0_rec in PyTorch, written plainly: the peer of training.py.

    python benchmarks/torch_training.py NETWORK SIZE BATCH STEPS [bf16]

Runs in an environment with torch alone. Prints the seconds of each step on random pixels: forward, cross-entropy and
triplet angular margin, backward, SGD with momentum; eager, channels last.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

CLASSES, SMOOTHING = 50, 0.1
MARGIN, ABSOLUTE, POSITIVE, NEGATIVE = 0.5, 0.1, 0.8, 0.4  # of the triplet, as in paddlex_feat


def conv_bn(cin: int, cout: int, kernel: int, stride: int = 1, groups: int = 1, act: nn.Module | None = None) -> Any:
    """Convolution, BatchNorm, activation."""
    layers = [nn.Conv2d(cin, cout, kernel, stride, kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(cout)]
    return nn.Sequential(*layers, act or nn.Identity())


class SqueezeExcite(nn.Module):
    """Channel gate."""

    def __init__(self, channels: int):
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.sigmoid(self.two(F.relu(self.one(x.mean((2, 3), keepdim=True)))))


class Block(nn.Module):
    """A block of PP-LCNetV2."""

    def __init__(self, cin: int, cout: int, stride: int = 1, kernel: int = 3, rich: bool = False, split: bool = False):
        super().__init__()
        sizes = [k for k in range(kernel, 0, -2) if k > 1 or stride == 1] if rich else [kernel]
        self.branches = nn.ModuleList(conv_bn(cin, cin, k, stride, cin) for k in sizes)
        self.gate = SqueezeExcite(cin) if split else nn.Identity()
        widths = [cin, cout // 2, cout] if split else [cin, cout]
        points = [conv_bn(a, b, 1, act=nn.ReLU(inplace=True)) for a, b in pairwise(widths)]
        self.points = nn.Sequential(*points)
        self.residual = rich and not split and stride == 1 and cin == cout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.branches[0](x)
        for branch in self.branches[1:]:
            y = y + branch(x)
        y = self.points(self.gate(F.relu(y, inplace=True)))
        return x + y if self.residual else y


def pplcnetv2() -> nn.Module:
    """The backbone of PP-ShiTuV2_rec."""
    layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, act=nn.ReLU(inplace=True)), Block(32, 64)]
    channels = 64
    for count, width, rich, split in ((2, 128, 0, 0), (2, 256, 0, 0), (6, 512, 1, 1), (2, 1024, 1, 0)):
        for number in range(count):
            stride = 2 if number == 0 and width < 1024 else 1
            layers.append(Block(channels, width, stride, 5 if rich else 3, bool(rich), bool(split)))
            channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Conv2d(1024, 512, 1), nn.Dropout(0.2), nn.Flatten())


class Inverted(nn.Module):
    """A block of EfficientNet-Lite."""

    def __init__(self, cin: int, cout: int, kernel: int, stride: int, expand: int):
        super().__init__()
        wide = cin * expand
        first = [conv_bn(cin, wide, 1, act=nn.ReLU6(inplace=True))] if expand > 1 else []
        middle = conv_bn(wide, wide, kernel, stride, wide, nn.ReLU6(inplace=True))
        self.layers = nn.Sequential(*first, middle, conv_bn(wide, cout, 1))
        self.residual = stride == 1 and cin == cout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def efficientnet_lite0() -> nn.Module:
    """The backbone of EfficientNet_Lite0_rec."""
    layers: list[nn.Module] = [conv_bn(3, 32, 3, 2, act=nn.ReLU6(inplace=True))]
    channels = 32
    narrow = ((1, 16, 3, 1, 1), (2, 24, 3, 2, 6), (2, 40, 5, 2, 6), (3, 80, 3, 2, 6))
    wide = ((3, 112, 5, 1, 6), (4, 192, 5, 2, 6), (1, 320, 3, 1, 6))
    for count, width, kernel, stride, expand in (*narrow, *wide):
        for number in range(count):
            layers.append(Inverted(channels, width, kernel, stride if number == 0 else 1, expand))
            channels = width
    last = conv_bn(320, 1280, 1, act=nn.ReLU6(inplace=True))
    return nn.Sequential(*layers, last, nn.AdaptiveAvgPool2d(1), nn.Flatten())


class Vision(nn.Module):
    """The backbone of PP-ShiTuV2_rec_CLIP_vit_base: 12 pre-norm blocks of width 768, patches of 16 px."""

    def __init__(self, size: int):
        super().__init__()
        self.patches = nn.Conv2d(3, 768, 16, 16, bias=False)
        self.positions = nn.Parameter(torch.randn((size // 16) ** 2 + 1, 768) * 0.02)
        self.token, self.first = nn.Parameter(torch.zeros(1, 1, 768)), nn.LayerNorm(768)
        block = nn.TransformerEncoderLayer(768, 12, 3072, 0.0, "gelu", batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, 12, enable_nested_tensor=False)
        self.last, self.projection = nn.LayerNorm(768), nn.Linear(768, 512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = self.first(torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions)
        return self.projection(self.last(self.blocks(x)).mean(1))


BACKBONES: dict[str, Callable[[int], tuple[nn.Module, int]]] = {
    "PP-ShiTuV2_rec": lambda size: (pplcnetv2(), 512),
    "EfficientNet_Lite0_rec": lambda size: (efficientnet_lite0(), 1280),
    "PP-ShiTuV2_rec_CLIP_vit_base": lambda size: (Vision(size), 512),
}


def triplet_angular_margin(features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Hardest pairs of a batch, with absolute bounds on both similarities."""
    unit = F.normalize(features)
    similarity, same = unit @ unit.T, labels[:, None] == labels
    positive = similarity.masked_fill(~same, 2.0).amin(1)
    negative = similarity.masked_fill(same, -2.0).amax(1)
    loss = F.relu(negative - positive + MARGIN).mean()
    return loss + ABSOLUTE * (F.relu(POSITIVE - positive).mean() + F.relu(negative - NEGATIVE).mean())


def main(name: str, size: int, batch: int, steps: int, half: bool) -> None:
    """Print the seconds of each step."""
    torch.manual_seed(0)
    backbone, width = BACKBONES[name](size)
    neck, head = nn.BatchNorm1d(width), nn.Linear(width, CLASSES)
    network = nn.ModuleList([backbone, neck, head]).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9, weight_decay=1e-5)
    images = torch.randint(0, 256, (batch, size, size, 3), dtype=torch.uint8)
    labels = torch.arange(batch) // 4 % CLASSES
    for _ in range(steps):
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16) if half else nullcontext():
            pixels = images.permute(0, 3, 1, 2).float().sub(127).div(58)
            features = neck(backbone(pixels)).float()
            loss = F.cross_entropy(head(features), labels, label_smoothing=SMOOTHING)
        loss = loss + triplet_angular_margin(features, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
        print(time.perf_counter() - began, flush=True)


if __name__ == "__main__":
    size, batch, steps = map(int, sys.argv[2:5])
    main(sys.argv[1], size, batch, steps, half=sys.argv[5:] == ["bf16"])
