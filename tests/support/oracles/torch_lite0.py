"""EfficientNet-Lite0 written plainly in PyTorch, with the names of the starter's file: features of images.

    python torch_lite0.py WEIGHTS FOLDER

Reads FOLDER/<size>.npy, float32 [N, 3, size, size], normalised; writes FOLDER/<size>_features.npy, float32 [N, 1280].
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

# kernel, stride, expansion, input and output channels of each of the 16 blocks
BLOCKS = [
    (3, 1, 1, 32, 16),
    (3, 2, 6, 16, 24), (3, 1, 6, 24, 24),
    (5, 2, 6, 24, 40), (5, 1, 6, 40, 40),
    (3, 2, 6, 40, 80), (3, 1, 6, 80, 80), (3, 1, 6, 80, 80),
    (5, 1, 6, 80, 112), (5, 1, 6, 112, 112), (5, 1, 6, 112, 112),
    (5, 2, 6, 112, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192), (5, 1, 6, 192, 192),
    (3, 1, 6, 192, 320),
]  # fmt: skip


class Same(nn.Conv2d):
    """TensorFlow's padding: as many outputs as input / stride, the odd pixel after."""

    def forward(self, x):
        pads = []
        for side in (x.shape[3], x.shape[2]):
            total = max((-(-side // self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - side, 0)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), self.weight, None, self.stride, 0, 1, self.groups)


def norm(channels):
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    def __init__(self, kernel, stride, expansion, cin, cout):
        super().__init__()
        wide = cin * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = Same(cin, wide, 1, bias=False), norm(wide)
        self._depthwise_conv = Same(wide, wide, kernel, stride, groups=wide, bias=False)
        self._bn1 = norm(wide)
        self._project_conv, self._bn2 = Same(wide, cout, 1, bias=False), norm(cout)
        self.shortcut = stride == 1 and cin == cout

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.shortcut else y


class Lite0(nn.Module):
    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0 = Same(3, 32, 3, 2, bias=False), norm(32)
        self._blocks = nn.ModuleList(Block(*sizes) for sizes in BLOCKS)
        self._conv_head, self._bn1 = Same(320, 1280, 1, bias=False), norm(1280)
        self._fc = nn.Linear(1280, 1000)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))


def main(weights: Path, folder: Path) -> None:
    """Compute the features of every size."""
    network = Lite0()
    network.load_state_dict(torch.load(weights, weights_only=True))  # strict: every name has its tensor
    network.eval()
    for path in folder.glob("*.npy"):
        with torch.no_grad():
            features = network(torch.from_numpy(np.load(path))).numpy()
        np.save(folder / f"{path.stem}_features.npy", features)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
