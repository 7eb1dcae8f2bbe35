"""Runs in the environment of the PaddleClas wheel: this package's networks on PaddleClas's backbones.

    python paddleclas_backbone.py ROOT FOLDER

ROOT is the folder of this package's source. Reads FOLDER/images.npy; writes FOLDER/theirs.npz, for
every backbone the features of PaddleClas's network alone and of the recognizer's backbone with the
same weights, and errors.json, what is said of names that do not serve.
"""

import json
import sys
from pathlib import Path

import numpy as np
import paddle

sys.path.insert(0, sys.argv[1])

from paddleclas.ppcls.arch import backbone as zoo

from paddlex_feat.errors import ConfigError
from paddlex_feat.models.recognizer import build
from paddlex_feat.models.spec import NetworkSpec

folder = Path(sys.argv[2])
images = paddle.to_tensor(np.load(folder / "images.npy"))
size = images.shape[-1]
features = {}
for name in ("ResNet18", "MobileNetV3_small_x0_35"):
    model = build(NetworkSpec(backbone=f"paddleclas/{name}", embedding_size=64, input_size=size), 3)
    plain = getattr(zoo, name)(pretrained=False, class_num=64)
    plain.set_state_dict(model.backbone.state_dict())
    model.eval()
    plain.eval()
    with paddle.no_grad():
        features[f"{name}.ours"], features[f"{name}.theirs"] = model.backbone(images).numpy(), plain(images).numpy()
    model.train()
    model.logits(model(images), paddle.to_tensor([0] * len(images))).sum().backward()
np.savez(folder / "theirs.npz", **features)
errors = {}
for name in ("ResNet5", "GoogLeNet"):  # unknown; not for images this small
    try:
        build(NetworkSpec(backbone=f"paddleclas/{name}", embedding_size=64, input_size=size), 3)
    except ConfigError as error:
        errors[name] = str(error)
(folder / "errors.json").write_text(json.dumps(errors))
