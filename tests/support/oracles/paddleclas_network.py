"""Runs in the environment of the PaddleClas wheel, which the package itself never needs.

    python paddleclas_network.py FOLDER

Reads FOLDER/images.npy, FOLDER/ours.pdparams and FOLDER/adapted.pdparams. Writes FOLDER/theirs.pdparams, the weights of
PaddleClas's own network after a few batches in training mode, and FOLDER/theirs.npz:
    eval, train      its features with its own weights, in both modes
    loaded           its features in evaluation mode with our weights
    adapted          the same with those of adapted.pdparams
    grad:<name>      gradient of mean(features^2) + mean(logits^2) in training mode
    undecayed        names of the parameters that carry a zero weight decay of their own
and FOLDER/inference.*, its network with its own weights as an inference model, branches fused.
"""

import sys
from pathlib import Path

import numpy as np
import paddle
from paddleclas.ppcls.arch import RecModel


def network() -> RecModel:
    """The recipe's network with 5 classes."""

    def attribute(kind: str, **values: float) -> dict:
        return {"initializer": {"name": kind, **values}}

    return RecModel(
        Backbone={"name": "PPLCNetV2_base_ShiTu", "pretrained": False, "class_expand": 512},
        BackboneStopLayer={"name": "flatten"},
        Neck={
            "name": "BNNeck",
            "num_features": 512,
            "weight_attr": attribute("Constant", value=1.0),
            "bias_attr": {**attribute("Constant", value=0.0), "learning_rate": 1e-20},
        },
        Head={
            "name": "FC",
            "embedding_size": 512,
            "class_num": 5,
            "weight_attr": attribute("Normal", std=0.001),
            "bias_attr": False,
        },
    )


def main(folder: Path) -> None:
    """Write what the test compares with."""
    images = paddle.to_tensor(np.load(folder / "images.npy"))
    paddle.seed(11)
    model = network()
    model.train()
    for batch in paddle.split(images, 2):  # BatchNorm statistics that are not the initial ones
        model(batch)
    paddle.save(model.state_dict(), str(folder / "theirs.pdparams"))
    paddle.seed(12)  # of the dropout mask
    output = model(images, paddle.arange(len(images)) % 5)
    train = output["features"].numpy()
    ((output["features"] ** 2).mean() + (output["logits"] ** 2).mean()).backward()
    gradients = {f"grad:{n}": p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    with paddle.no_grad():
        model.set_state_dict(paddle.load(str(folder / "theirs.pdparams")))  # the statistics moved
        model.eval()
        evaluation = model(images)["features"].numpy()
        model.set_state_dict(paddle.load(str(folder / "ours.pdparams")))
        loaded = model(images)["features"].numpy()
        model.set_state_dict(paddle.load(str(folder / "adapted.pdparams")))
        adapted = model(images)["features"].numpy()
        model.set_state_dict(paddle.load(str(folder / "theirs.pdparams")))
    undecayed = [n for n, p in model.named_parameters() if str(p.regularizer).endswith("coeff=0.000000")]
    found = {"eval": evaluation, "train": train, "loaded": loaded, "adapted": adapted, "undecayed": undecayed}
    np.savez(folder / "theirs.npz", **found, **gradients)
    export(model, folder / "inference")


class Features(paddle.nn.Layer):
    """What an inference model computes: the features alone."""

    def __init__(self, model: RecModel):
        super().__init__()
        self.model = model

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        """float32 [N, 3, S, S] -> float32 [N, 512]."""
        return self.model(x)["features"]


def export(model: RecModel, path: Path) -> None:
    """Write path.json and path.pdiparams."""
    model.eval()
    for layer in model.sublayers():
        if hasattr(layer, "rep") and not getattr(layer, "is_repped", False):
            layer.rep()
    spec = [paddle.static.InputSpec([None, 3, 64, 64], "float32", "x")]
    paddle.jit.save(paddle.jit.to_static(Features(model), input_spec=spec), str(path))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
