"""Runs in the environment of the PaddleX wheel: its predictor on an inference directory of ours.

    python paddlex_predict.py MODEL_DIR OUT.npy IMAGE…

Writes the features, float32 [images, 512]. One image a call: PaddleX 3.7.2 attaches the features of
the whole batch to every item.
"""

import os
import sys

os.environ["PADDLE_PDX_DISABLE_MODEL_SOURCE_CHECK"] = "True"

import numpy as np
from paddlex import create_model

folder, target, *images = sys.argv[1:]
model = create_model("PP-ShiTuV2_rec", model_dir=folder, device="cpu")
rows = [np.asarray(next(iter(model.predict(image)))["feature"]).reshape(-1) for image in images]
np.save(target, np.stack(rows))
