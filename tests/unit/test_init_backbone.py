"""Train.init_backbone: random weights through which images remain distinct."""

from __future__ import annotations

import numpy as np
import pytest

paddle = pytest.importorskip("paddle")

from paddlex_feat.config.load import load
from paddlex_feat.data.images.opencv import cv2
from paddlex_feat.models import recognizer
from paddlex_feat.models.pplcnetv2 import ConvBN
from paddlex_feat.models.spec import NetworkSpec
from paddlex_feat.modes.parts import find_problems


def backbone(init: str, seed: int = 3):
    paddle.seed(seed)
    layer = recognizer.build(NetworkSpec(), None).backbone
    if init != "recipe":
        getattr(layer, f"init_{init}")()
    return layer


def pictures(faces, people: range) -> np.ndarray:
    """Ten photographs of each person at 64 px, float32 [N, 3, 64, 64] around 0."""
    files = [faces / f"images/s{p:02d}/{i:02d}.pgm" for p in people for i in range(1, 11)]
    grey = np.stack([cv2.resize(cv2.imread(str(f), 0), (64, 64)) for f in files])
    return np.repeat(grey[:, None].astype("float32") / 128 - 1, 3, axis=1)


def neighbours_of_the_same_person(layer, images: np.ndarray) -> float:
    """How often the nearest other photograph, by features with the statistics of this batch, is of the same person."""
    for part in layer.sublayers():
        if isinstance(part, paddle.nn.BatchNorm2D):
            part._momentum = 0.0
    with paddle.no_grad():
        layer.train()
        layer(paddle.to_tensor(images))
        layer.eval()
        features = layer(paddle.to_tensor(images)).numpy()
    distances = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    people = np.arange(len(images)) // 10
    return float((people[distances.argmin(1)] == people).mean())


def test_faces_remain_distinct_through_the_untrained_network(faces):
    images = pictures(faces, range(1, 11))
    assert neighbours_of_the_same_person(backbone("recipe"), images) < 0.35  # chance: 0.09
    assert neighbours_of_the_same_person(backbone("delta_orthogonal"), images) > 0.5


def test_pointwise_weights_are_orthogonal_and_depthwise_kernels_have_a_centre():
    layers = [layer for layer in backbone("delta_orthogonal").sublayers() if isinstance(layer, ConvBN)]
    kinds = {"pointwise": 0, "depthwise": 0}
    for layer in layers:
        weight = layer.conv.weight.numpy()
        if weight.shape[1] == 1:
            kinds["depthwise"] += 1
            middle = weight.shape[-1] // 2
            assert weight[:, 0, middle, middle].mean() == pytest.approx(1, abs=0.3)
        elif weight.shape[-1] == 1:
            kinds["pointwise"] += 1
            flat = weight.reshape(weight.shape[:2])
            flat = flat if flat.shape[0] <= flat.shape[1] else flat.T
            assert np.allclose(flat @ flat.T, np.eye(len(flat)), atol=1e-4)
        assert np.allclose(layer.bn.bias.numpy(), 1 if layer.relu else 1 / 3)
    assert kinds == {"pointwise": 19, "depthwise": 28}


def test_the_same_seed_gives_the_same_weights():
    first, second, other = (backbone("delta_orthogonal", seed).state_dict() for seed in (3, 3, 4))
    assert all(np.array_equal(first[name], second[name]) for name in first)
    assert not np.array_equal(first["stages.0.0.dw_conv.conv.weight"], other["stages.0.0.dw_conv.conv.weight"])


@pytest.mark.parametrize("name", ["EfficientNet_Lite0_rec", "PP-ShiTuV2_rec_CLIP_vit_base"])
def test_a_backbone_without_this_start_is_refused(name):
    config, _ = load(name, [("Global.mode", "train"), ("Train.init_backbone", "delta_orthogonal")])
    (problem,) = find_problems(config)
    assert problem.key == "Train.init_backbone" and "use recipe" in problem.message
