"""In any Paddle: state dicts saved in every protocol that paddle.save knows, and what they hold."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import paddle

folder = Path(sys.argv[1])
paddle.seed(1)
layer = paddle.nn.Sequential(paddle.nn.Linear(3, 2), paddle.nn.BatchNorm1D(2))
state = {**layer.state_dict(), "weight": layer[0].weight, "empty": paddle.zeros([0, 3]), "scalar": paddle.to_tensor(3)}
np.savez(folder / "expected.npz", **{name: tensor.numpy() for name, tensor in state.items()})
for protocol in (2, 3, 4):
    paddle.save(state, str(folder / f"{protocol}.pdparams"), protocol=protocol)
    nested = {"LR": {"weights": [layer[0].weight]}, "epoch": 3, "rate": 0.1, "name": "x", "half": np.float32(0.5)}
    paddle.save(nested, str(folder / f"{protocol}.pdopt"), protocol=protocol)
