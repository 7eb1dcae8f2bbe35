"""A network as Paddle 2.6 exports it, and its features: writes inference.pdmodel, .pdiparams, features.npy.

Reads images.npy, float32 [N, 3, 224, 224], in the folder given.
"""

import sys
from pathlib import Path

import numpy as np
import paddle

folder = Path(sys.argv[1])
paddle.seed(0)
network = paddle.vision.models.mobilenet_v1(num_classes=512)
network.eval()
images = np.load(folder / "images.npy")
with paddle.no_grad():
    np.save(folder / "features.npy", network(paddle.to_tensor(images)).numpy())
graph = paddle.jit.to_static(network, input_spec=[paddle.static.InputSpec([None, 3, 224, 224], "float32", "x")])
paddle.jit.save(graph, str(folder / "inference"))
