"""Parity of the CLIP networks with the real PaddleClas wheel, and its backbones in our network."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from support import oracles
from support.networks import SPECS
from support.runs import ROOT

paddle = pytest.importorskip("paddle")

from paddlex_feat.models import recognizer, weights

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
SCALE = 30  # of the logits


@pytest.fixture(scope="module", params=["base", "large"])
def exchange(request, tmp_path_factory):
    """The network, and what PaddleClas answered with its own weights and with ours."""
    folder = tmp_path_factory.mktemp(request.param)
    images = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    labels = np.array([3, 1])
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    paddle.seed(3)
    model = recognizer.build(SPECS[f"PP-ShiTuV2_rec_CLIP_vit_{request.param}"], 5)
    weights.write(folder / "ours.pdparams", model.state_dict())
    oracles.ask("paddleclas", "paddleclas_clip.py", folder, request.param)
    yield folder, model, paddle.to_tensor(images), paddle.to_tensor(labels), np.load(folder / "theirs.npz")
    for file in folder.glob("*.pdparams"):  # gigabytes
        file.unlink()


def answer(model, images, labels) -> tuple[np.ndarray, np.ndarray]:
    with paddle.no_grad():
        features = model(images)
        return features.numpy(), model.logits(features, labels).numpy()


def difference(a: np.ndarray, b: np.ndarray) -> float:
    print(f"largest difference {np.abs(a - b).max():.2e} of values up to {np.abs(b).max():.2f}")
    return float(np.abs(a - b).max())


def test_our_weights_give_the_same_features_and_logits_in_paddleclas(exchange):
    _, model, images, labels, theirs = exchange
    model.train()
    features, logits = answer(model, images, labels)
    assert difference(features, theirs["loaded"]) <= 1e-5
    assert difference(logits, theirs["loaded_logits"]) <= 1e-5 * SCALE


def test_paddleclas_weights_give_the_same_features_and_logits_here_in_both_modes(exchange):
    folder, model, images, labels, theirs = exchange
    report = weights.load(model, folder / "theirs.pdparams")
    assert not report.unused and len(report.loaded) == len(model.state_dict())
    for mode, head in (("eval", "cosines"), ("train", "logits")):
        model.train() if mode == "train" else model.eval()
        features, logits = answer(model, images, labels)
        assert difference(features, theirs[mode]) <= 1e-5 * max(1, np.abs(theirs[mode]).max())
        assert difference(logits, theirs[head]) <= 1e-5 * (SCALE if mode == "train" else 1)
    assert np.abs(theirs["logits"]).max() > 1 > np.abs(theirs["cosines"]).max()


def test_resampled_positions_give_the_same_features_at_another_size(exchange):
    folder, model, images, labels, theirs = exchange
    large = model.backbone.averages_class_token
    spec = SPECS[f"PP-ShiTuV2_rec_CLIP_vit_{'large' if large else 'base'}"]
    side = 5 * spec.patch_size
    state = weights.read(folder / "theirs.pdparams")
    small = recognizer.build(replace(spec, input_size=side), 5)
    assert small.backbone.adapt_state(state, "backbone.")
    small.set_state_dict(state)
    small.eval()
    features, _ = answer(small, images[:, :, :side, :side], labels)
    assert difference(features, theirs["small"]) <= 1e-5 * max(1, np.abs(theirs["small"]).max())


def test_the_same_parameters_are_exempt_from_weight_decay(exchange):
    own = [n for n, p in exchange[1].named_parameters() if p.regularizer is not None]
    assert own == exchange[4]["undecayed"].tolist() == []


def test_backbones_of_the_installed_paddleclas_serve(tmp_path):
    np.save(tmp_path / "images.npy", np.random.default_rng(0).standard_normal((2, 3, 64, 64)).astype(np.float32))
    oracles.ask("paddleclas", "paddleclas_backbone.py", ROOT, tmp_path)
    features = np.load(tmp_path / "theirs.npz")
    for name in ("ResNet18", "MobileNetV3_small_x0_35"):
        assert features[f"{name}.ours"].shape == (2, 64)
        assert np.array_equal(features[f"{name}.ours"], features[f"{name}.theirs"])
    errors = json.loads((tmp_path / "errors.json").read_text())
    assert "Did you mean ResNet50" in errors["ResNet5"]
    assert "GoogLeNet cannot be built for 64 px" in errors["GoogLeNet"]
