"""Parity with the real PaddleClas and PaddleX wheels."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from support import oracles
from support.networks import SPECS
from support.runs import run_main

paddle = pytest.importorskip("paddle")

import paddlex_feat
from paddlex_feat.models import recognizer, weights
from paddlex_feat.training.adaptation import fold
from paddlex_feat.training.adaptation.maps import AffineMap

pytestmark = pytest.mark.slow
NAME = "PP-ShiTuV2_rec"
PADDLEX_YML = f"""Global:
  model_name: {NAME}
PreProcess:
  transform_ops:
  - ResizeImage:
      backend: cv2
      interpolation: bilinear
      return_numpy: false
      size:
      - 64
      - 64
  - NormalizeImage:
      channel_num: 3
      mean: [0.485, 0.456, 0.406]
      order: hwc
      scale: 0.00392156862745098
      std: [0.229, 0.224, 0.225]
  - ToCHWImage: null
PostProcess:
  NormalizeFeatures: null
"""


def features(model, images: np.ndarray) -> np.ndarray:
    with paddle.no_grad():
        return model(paddle.to_tensor(images)).numpy()


def a_map() -> AffineMap:
    rng = np.random.default_rng(1)
    return AffineMap(0.1 * rng.standard_normal(512), np.linalg.qr(rng.standard_normal((512, 512)))[0])


def adapted(network) -> dict[str, np.ndarray]:
    """The tensors of a network with a map folded into them, without head, as Train.method=adapt writes them."""
    state = {n: t.numpy() for n, t in network.state_dict().items() if not n.startswith(weights.HEAD)}
    return fold.fold(state, a_map(), np.ones(512), 1 - SPECS[NAME].dropout, network.neck.feat_bn._epsilon)


@pytest.fixture(scope="module")
def exchange(tmp_path_factory):
    """The folder in which PaddleClas and this package exchanged weights, images and features."""
    folder = tmp_path_factory.mktemp("exchange")
    images = np.random.default_rng(0).standard_normal((8, 3, 64, 64)).astype(np.float32)
    np.save(folder / "images.npy", images)
    paddle.seed(3)
    ours = recognizer.build(SPECS[NAME], 5)
    ours.train()
    features(ours, images)
    weights.write(folder / "ours.pdparams", ours.state_dict())
    weights.write(folder / "adapted.pdparams", adapted(ours))
    oracles.ask("paddleclas", "paddleclas_network.py", folder)
    return folder, images, np.load(folder / "theirs.npz")


def test_paddleclas_weights_give_the_same_features_here_in_both_modes(exchange):
    folder, images, theirs = exchange
    model = recognizer.build(SPECS[NAME], 5)
    report = weights.load(model, folder / "theirs.pdparams")
    assert not report.unused and len(report.loaded) == len(model.state_dict())
    model.train()
    paddle.seed(12)  # the same dropout mask
    assert np.abs(features(model, images) - theirs["train"]).max() <= 1e-5
    weights.load(model, folder / "theirs.pdparams")
    model.eval()
    assert np.abs(features(model, images) - theirs["eval"]).max() <= 1e-5
    assert np.abs(theirs["eval"]).max() > 0.1 and np.abs(theirs["train"] - theirs["eval"]).max() > 0.1


def test_every_gradient_of_the_network_is_paddleclass(exchange):
    """Through all layers, BatchNorm in training mode and dropout included."""
    folder, images, theirs = exchange
    model = recognizer.build(SPECS[NAME], 5)
    weights.load(model, folder / "theirs.pdparams")
    model.train()
    paddle.seed(12)  # the same dropout mask
    features = model(paddle.to_tensor(images))
    ((features**2).mean() + (model.logits(features) ** 2).mean()).backward()
    own = {f"grad:{n}": p.grad.numpy() for n, p in model.named_parameters() if p.grad is not None}
    expected = {n: theirs[n] for n in theirs.files if n.startswith("grad:")}
    assert set(own) == set(expected) and len(own) > 150
    for name, value in expected.items():
        assert np.abs(own[name] - value).max() <= 1e-5 * max(1, np.abs(value).max()), name


def test_our_weights_give_the_same_features_in_paddleclas(exchange):
    folder, images, theirs = exchange
    model = recognizer.build(SPECS[NAME], 5)
    weights.load(model, folder / "ours.pdparams")
    model.eval()
    assert np.abs(features(model, images) - theirs["loaded"]).max() <= 1e-5


def test_paddleclas_gives_the_features_of_an_adapted_network(exchange):
    folder, images, theirs = exchange
    model = recognizer.build(SPECS[NAME], None)
    weights.load(model, folder / "adapted.pdparams")
    model.eval()
    found = features(model, images)
    assert np.abs(found - theirs["adapted"]).max() <= 1e-5
    assert np.abs(found - a_map()(theirs["loaded"])).max() <= 1e-5
    assert np.abs(found - theirs["loaded"]).max() > 0.1


def test_an_inference_model_of_paddleclas_loads_here(exchange, faces):
    """Its directory, with the inference.yml that PaddleX writes for its recipe."""
    folder, _, _ = exchange
    (folder / "inference.yml").write_text(PADDLEX_YML)
    files = [str(p) for p in sorted((faces / "images" / "s25").iterdir())]
    found = [r.feature for r in paddlex_feat.create_model(NAME, folder, device="cpu").predict(files, batch_size=4)]
    model = recognizer.build(SPECS[NAME], 5)
    weights.load(model, folder / "theirs.pdparams")
    model.eval()
    pixels = np.stack([cv2.resize(cv2.imread(f), (64, 64))[..., ::-1] for f in files])
    x = (pixels / 255 - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    expected = features(model, x.transpose(0, 3, 1, 2).astype(np.float32))
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert np.abs(np.stack(found) - expected).max() <= 1e-5


def test_the_same_parameters_are_exempt_from_weight_decay(exchange):
    own = [n for n, p in recognizer.build(SPECS[NAME], 5).named_parameters() if p.regularizer is not None]
    assert sorted(own) == sorted(exchange[2]["undecayed"].tolist()) != []


def test_paddlex_checks_a_data_set_with_the_same_keys_counts_and_samples(faces, tmp_path):
    oracles.ask("paddlex", "paddlex_check.py", faces, tmp_path / "theirs")
    settings = (f"Global.dataset_dir={faces}", f"Global.output={tmp_path / 'ours'}", "Train.batch_size=40")
    done = run_main("-c", NAME, *(w for s in settings for w in ("-o", s)))
    assert done.returncode == 0, done.stderr
    theirs, ours = (
        json.loads((tmp_path / who / "check_dataset_result.json").read_text()) for who in ("theirs", "ours")
    )
    assert list(ours) == [*theirs, "findings"] and list(ours["attributes"]) == list(theirs["attributes"])
    for key, value in theirs.items():
        if key == "attributes":
            for name in ("train", "gallery", "query"):
                assert ours[key][f"{name}_samples"] == value[f"{name}_samples"]
                stems = [[Path(p).name.split(".")[0] for p in r[f"{name}_sample_paths"]] for r in (ours[key], value)]
                assert stems[0] == stems[1]  # the same images are shown
        elif key == "dataset_path":  # PaddleX gives the last part only, its manual the whole
            assert Path(ours[key]).name == value
        else:
            assert ours[key] == value


def test_paddlex_reads_an_exported_directory_and_gives_the_same_features(run_folder, faces, tmp_path):
    folder = run_folder / "best_model" / "inference"
    files = [str(p) for p in sorted((faces / "images" / "s25").iterdir())]
    oracles.ask("paddlex", "paddlex_predict.py", folder, tmp_path / "theirs.npy", *files)
    ours = np.stack([r.feature for r in paddlex_feat.create_model(NAME, folder, device="cpu").predict(files)])
    assert np.abs(ours - np.load(tmp_path / "theirs.npy")).max() <= 1e-5
