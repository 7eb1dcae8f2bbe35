"""A visual tower of another program through the modes, at a tiny size."""

from __future__ import annotations

import json

import cv2
import numpy as np
import pytest
import yaml
from support.runs import run_here

paddle = pytest.importorskip("paddle")

import paddlex_feat
from paddlex_feat.config.load import load
from paddlex_feat.models import recognizer, weights
from paddlex_feat.modes.parts import network_spec

BASE = "PP-ShiTuV2_rec_CLIP_vit_base"
KEYS = {
    "Model.depth": 1,
    "Model.width": 48,
    "Model.heads": 4,
    "Model.patch_size": 8,
    "Model.embedding_size": 24,
    "Model.pooling": "cls",
    "Model.activation": "quick_gelu",
    "Train.input_size": 32,
    "Train.normalization": "clip",
}
PARTS = {
    "cls_token": "class_embedding",
    "pos_embed": "positional_embedding",
    "patch_embed.proj": "conv1",
    "norm.": "ln_post.",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "blocks": "transformer.resblocks",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "fc1": "c_fc",
    "fc2": "c_proj",
}


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    """A weight file under OpenAI's names, and the network whose weights it has."""
    paddle.seed(5)
    model = recognizer.build(network_spec(load(BASE, list(KEYS.items()))[0]), None)
    state = {}
    for name, tensor in model.backbone.state_dict().items():
        for own, theirs in PARTS.items():
            name = name.replace(own, theirs)
        value = tensor.numpy()
        if name.endswith("embedding"):
            value = value.reshape(-1, 48) if name.startswith("pos") else value.ravel()
        state[f"visual.{name}"] = value.T if value.ndim == 2 and name.endswith("weight") else value
    file = tmp_path_factory.mktemp("tower") / "open_clip_model.safetensors"
    weights.write(file, state | {"logit_scale": np.zeros((), np.float32)})
    return file, model.backbone


def run(*settings: str):
    keys = [f"{key}={value}" for key, value in KEYS.items()]
    done = run_here("-c", BASE, *(word for s in (*settings, *keys) for word in ("-o", s)))
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_an_exported_tower_predicts_the_features_of_the_tower(tower, faces, tmp_path):
    file, backbone = tower
    run("Global.mode=export", f"Export.weight_path={file}", f"Global.output={tmp_path}", "Global.device=cpu")
    folder = next(tmp_path.rglob("inference.yml")).parent
    ops = yaml.safe_load((folder / "inference.yml").read_text())["PreProcess"]["transform_ops"]
    mean, std = ops[1]["NormalizeImage"]["mean"], ops[1]["NormalizeImage"]["std"]
    assert mean[0] == 0.48145466 and std[0] == 0.26862954
    photograph = str(min((faces / "images/s30").iterdir()))
    image = cv2.cvtColor(cv2.imread(photograph), cv2.COLOR_BGR2RGB)
    pixels = cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC).astype(np.float32) / 255
    pixels = ((pixels - mean) / std).astype(np.float32).transpose(2, 0, 1)[None]
    backbone.eval()
    expected = backbone(paddle.to_tensor(pixels)).numpy()[0]
    model = paddlex_feat.create_model(BASE, folder, device="cpu")
    found = next(iter(model.predict(photograph))).feature
    assert np.abs(found - expected / np.linalg.norm(expected)).max() <= 1e-5


def test_training_starts_from_a_tower(tower, small_faces, tmp_path):
    said = run(
        "Global.mode=train",
        f"Global.dataset_dir={small_faces}",
        f"Global.output={tmp_path}",
        "Global.device=cpu",
        f"Train.pretrain_weight_path={tower[0]}",
        "Train.epochs_iters=1",
        "Train.warmup_steps=0",
        "Train.batch_size=16",
        "Train.learning_rate=0.000001",
    )
    assert "1 tensors besides the tower (text, logit scale) are ignored" in said
    assert "newly initialised: head.weight" in said
    trained = weights.read(tmp_path / "best_model/best_model.pdparams")
    assert np.abs(trained["neck.fc.weight"] - np.eye(24)).max() < 1e-3
    assert np.abs(trained["backbone.proj"] - tower[1].proj.numpy()).max() < 1e-3
    assert json.loads((tmp_path / "train_result.json").read_text())["done_flag"]
