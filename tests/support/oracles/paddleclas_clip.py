"""Runs in the environment of the PaddleClas wheel: one of its two CLIP networks for retrieval.

    python paddleclas_clip.py FOLDER base|large

Reads FOLDER/images.npy, FOLDER/labels.npy and FOLDER/ours.pdparams, weights of ours. Writes
FOLDER/theirs.pdparams and FOLDER/theirs.npz:
    eval, train                  its features with its own weights, in both modes
    cosines, logits              of its head with the labels, in both modes
    small                        its features of images cut to 5 x 5 patches, for which it resamples
                                 the positions
    loaded, loaded_logits        features and logits in training mode with our weights
    undecayed                    names of the parameters that carry a weight decay of their own

One network a process: PaddleClas keeps the network's kind in a global variable that forward reads.
"""

import sys
from pathlib import Path

import numpy as np
import paddle
from paddleclas.ppcls.arch import RecModel

BACKBONES = {"base": "CLIP_vit_base_patch16_224", "large": "CLIP_vit_large_patch14_224"}
CLASSES = 5


def network(kind: str) -> RecModel:
    """The recipe's network with 5 classes."""
    return RecModel(
        Backbone={
            "name": BACKBONES[kind],
            "pretrained": False,
            "return_embed": True,
            "return_mean_embed": True,
        },
        BackboneStopLayer={"name": "flatten"},
        Neck={"name": "FC", "embedding_size": 512, "class_num": 512},
        Head={"name": "ArcMargin", "embedding_size": 512, "class_num": CLASSES, "margin": 0.2, "scale": 30},
    )


def main(folder: Path, kind: str) -> None:
    """Write what the test compares with."""
    images, labels = (paddle.to_tensor(np.load(folder / f"{n}.npy")) for n in ("images", "labels"))
    labels = labels.unsqueeze(1)
    paddle.seed(11)
    model = network(kind)
    shake(model)
    paddle.save(model.state_dict(), str(folder / "theirs.pdparams"))
    results = {"undecayed": [n for n, p in model.named_parameters() if p.regularizer is not None]}
    with paddle.no_grad():
        model.eval()
        results["eval"], results["cosines"] = answer(model, images, labels)
        side = 5 * model.backbone.patch_embed.patch_size[0]
        results["small"], _ = answer(model, images[:, :, :side, :side], labels)
        model.train()
        results["train"], results["logits"] = answer(model, images, labels)
        model.set_state_dict(paddle.load(str(folder / "ours.pdparams")))
        results["loaded"], results["loaded_logits"] = answer(model, images, labels)
    np.savez(folder / "theirs.npz", **results)


def shake(model: paddle.nn.Layer) -> None:
    """Scales and shifts that are not the initial ones, so that leaving one out shows."""
    for name, parameter in model.named_parameters():
        if len(parameter.shape) == 1:
            parameter.set_value(parameter + 0.1 * paddle.randn(parameter.shape))
        elif name.endswith(("pos_embed", "cls_token")):
            parameter.set_value(parameter * 10)


def answer(model: RecModel, images: paddle.Tensor, labels: paddle.Tensor) -> list[np.ndarray]:
    """Features and logits."""
    out = model(images, labels)
    return [out["features"].numpy(), out["logits"].numpy()]


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
