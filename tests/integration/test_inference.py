"""Exported models, the predictor and its results."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from support.networks import SPECS
from support.runs import ROOT, run_here, run_main

paddle = pytest.importorskip("paddle")

import paddlex_feat
from paddlex_feat.config.load import load
from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.errors import DeviceError, WeightsError
from paddlex_feat.inference.engines.options import resolve_engine_options
from paddlex_feat.inference.export.exporter import Exporter, require_agreement
from paddlex_feat.inference.extractor import unit_rows
from paddlex_feat.inference.model_info import read_info
from paddlex_feat.models import recognizer, weights
from paddlex_feat.models.pplcnetv2 import Block
from paddlex_feat.modes.data import comparison_images

NAME = "PP-ShiTuV2_rec"


@pytest.fixture(scope="module")
def dynamic(run_folder, files) -> np.ndarray:
    """Unit features of the plain network in evaluation mode, one by one, from the weight file."""
    network = recognizer.build(SPECS[NAME], 8)
    weights.load(network, run_folder / "best_model/best_model.pdparams")
    network.eval()
    preprocess = Preprocess(32)
    rows = []
    with paddle.no_grad():
        for file in files:
            x = preprocess.normalise(preprocess.resize(read_rgb(file))[None])
            rows.append(unit_rows(network(paddle.to_tensor(x)).numpy())[0])
    return np.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_predictor_exported_graph_and_dynamic_graph_agree(model, dynamic, files, batch_size):
    results = list(model.predict(files, batch_size=batch_size))
    assert [r["input_path"] for r in results] == files
    assert np.abs(np.stack([r.feature for r in results]) - dynamic).max() <= 1e-5


def test_one_flat_unit_feature_an_image(model, files):
    result = next(model.predict(files[0]))
    assert list(result) == ["input_path", "feature"]
    assert len(result["feature"]) == 512 and all(type(v) is float for v in result["feature"])
    assert np.linalg.norm(result["feature"]) == pytest.approx(1, abs=1e-6)
    assert result.json == {"res": {"input_path": files[0], "feature": result["feature"]}}


def test_inference_yml_is_what_paddlex_reads(run_folder):
    content = yaml.safe_load((run_folder / "best_model/inference/inference.yml").read_text())
    assert list(content) == ["Global", "PreProcess", "PostProcess"]
    assert content["Global"] == {"model_name": NAME} and content["PostProcess"] == {"NormalizeFeatures": None}
    ops = content["PreProcess"]["transform_ops"]
    assert ops[0] == {
        "ResizeImage": {"backend": "cv2", "interpolation": "bilinear", "return_numpy": False, "size": [32, 32]}
    }
    assert ops[1]["NormalizeImage"]["scale"] == pytest.approx(1 / 255) and ops[2] == {"ToCHWImage": None}


def test_another_model_name_is_an_error(run_folder):
    with pytest.raises(WeightsError, match="holds PP-ShiTuV2_rec"):
        paddlex_feat.create_model("PP-ShiTuV2_rec_CLIP_vit_base", run_folder / "best_model/inference")


@pytest.mark.parametrize("missing", ["inference.yml", "inference.json", "inference.pdiparams"])
def test_an_incomplete_directory_is_an_error(run_folder, tmp_path, missing):
    folder = tmp_path / "inference"
    shutil.copytree(run_folder / "best_model/inference", folder)
    (folder / missing).unlink()
    with pytest.raises(WeightsError, match=missing.partition(".")[2]):
        paddlex_feat.create_model(NAME, folder, device="cpu")


@pytest.mark.parametrize("text", ["", "[]", "Global: 3", "Global: {model_name: x}\n", "a: ]", "PreProcess: {}\n"])
def test_a_damaged_inference_yml_is_an_error(tmp_path, text):
    (tmp_path / "inference.yml").write_text(text)
    with pytest.raises(WeightsError, match=r"inference\.yml"):
        read_info(tmp_path)


def test_a_zero_feature_stays_zero():
    rows = unit_rows(np.array([[0, 0], [3, 4]], np.float32))
    assert rows.tolist() == [[0, 0], pytest.approx([0.6, 0.8])]


def test_export_fails_where_the_answers_differ(tmp_path, files):
    """The check must be able to fail: other weights under the graph are noticed."""
    paddle.seed(0)
    network = recognizer.build(SPECS[NAME], 2)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    preprocess = Preprocess(32)
    exporter = Exporter(network, NAME, preprocess)
    exporter.write(state, tmp_path)
    images = np.stack([preprocess.resize(read_rgb(f)) for f in files[:4]])
    assert exporter.largest_difference(state, tmp_path, images, "cpu") <= 1e-5
    other = {**state, "backbone.last_conv.bias": state["backbone.last_conv.bias"] + 0.01}
    difference = exporter.largest_difference(other, tmp_path, images, "cpu")
    with pytest.raises(WeightsError, match="differs"):
        require_agreement(difference, 1e-5, tmp_path)
    with pytest.raises(WeightsError, match="differs"):
        require_agreement(float("nan"), 1e-5, tmp_path)


def test_an_error_of_fusing_is_noticed(tmp_path, files, monkeypatch):
    fuse = Block.fuse

    def wrong(block):
        fuse(block)
        if block.fused:
            block.dw_conv.bias.set_value(block.dw_conv.bias + 0.5)

    monkeypatch.setattr(Block, "fuse", wrong)
    network = recognizer.build(SPECS[NAME], 2)
    state = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    exporter = Exporter(network, NAME, Preprocess(32))
    exporter.write(state, tmp_path)
    images = np.stack([Preprocess(32).resize(read_rgb(f)) for f in files[:4]])
    assert exporter.largest_difference(state, tmp_path, images, "cpu") > 1e-3


@pytest.mark.slow
def test_export_keeps_what_had_its_names(run_folder, small_faces, tmp_path):
    (tmp_path / "inference.yml").write_text("mine")
    weight = f"Export.weight_path={run_folder}/best_model/best_model.pdparams"
    for _ in range(2):  # processes: Paddle numbers the variables of all graphs of a process in turn
        done = main_mode("export", tmp_path, weight, f"Global.dataset_dir={small_faces}", run=run_main)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "inference.yml.bak").read_text() == "mine"
    assert len(list(tmp_path.glob("*.bak*"))) == 1  # the same export twice displaces nothing


def main_mode(mode: str, tmp_path: Path, *overrides: str, run=run_here):
    settings = (f"Global.mode={mode}", f"Global.output={tmp_path}", "Global.device=cpu", *overrides)
    return run("-c", NAME, *(w for s in settings for w in ("-o", s)))


def test_images_that_cannot_be_read_do_not_stop_an_export(small_faces, tmp_path, caplog):
    (tmp_path / "images").symlink_to(small_faces / "images")
    for name in ("train", "gallery", "query"):
        lines = (small_faces / f"{name}.txt").read_text().splitlines()[:3]
        (tmp_path / f"{name}.txt").write_text("\n".join(["missing.jpg 7", *lines]))
    config = load(NAME, [("Global.dataset_dir", str(tmp_path))])[0]
    images, source = comparison_images(config, Preprocess(32))
    assert images.shape == (3, 32, 32, 3) and source == "3 gallery images" and "missing.jpg" in caplog.text
    (tmp_path / "images").unlink()
    images, source = comparison_images(config, Preprocess(32))
    assert images.shape == (8, 32, 32, 3) and source == "8 random images"


def test_mode_export_then_mode_predict(run_folder, small_faces, files, tmp_path, dynamic):
    weight = f"Export.weight_path={run_folder}/best_model/best_model.pdparams"
    done = main_mode("export", tmp_path / "exported", weight, f"Global.dataset_dir={small_faces}")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "exported/export_result.json").read_text())
    assert result["done_flag"] and result["largest_difference"] <= 1e-5 and "gallery" in result["compared_on"]
    assert result["files"] == ["inference.json", "inference.pdiparams", "inference.yml"]

    chosen = f"[{files[0]}, {files[7]}]"
    where = f"Predict.model_dir={tmp_path}/exported"
    done = main_mode("predict", tmp_path / "predicted", where, f"Predict.input={chosen}", "Predict.batch_size=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("'feature'") == 2
    result = json.loads((tmp_path / "predicted/predict_result.json").read_text())
    assert result["images"] == 2 and result["results"] == ["01_res.json", "03_res.json"]
    for name, row in (("01_res.json", dynamic[0]), ("03_res.json", dynamic[7])):
        saved = json.loads((tmp_path / "predicted" / name).read_text())
        assert np.abs(np.array(saved["feature"]) - row).max() <= 1e-5


def test_weights_beside_a_foreign_config_yaml_can_be_exported(run_folder, small_faces, tmp_path):
    """PaddleClas leaves a config.yaml of its own in the folder of a run."""
    (tmp_path / "config.yaml").write_text("Arch:\n  name: RecModel\nLoss:\n  Train: []\n")
    shutil.copy(run_folder / "best_model/best_model.pdparams", tmp_path)
    weight = f"Export.weight_path={tmp_path}/best_model.pdparams"
    data = f"Global.dataset_dir={small_faces}"
    done = main_mode("export", tmp_path / "out", weight, data, "Train.input_size=32")
    assert done.returncode == 0 and "config.yaml was written by PaddleClas" in done.stderr, done.stderr


def test_a_damaged_config_yaml_beside_weights_is_an_error(run_folder, small_faces, tmp_path):
    """With the network and input size of -c the weights would load, and answer otherwise."""
    whole = (run_folder / "config.yaml").read_text()
    shutil.copy(run_folder / "best_model/best_model.pdparams", tmp_path)
    for text in (whole[: len(whole) // 2] + "\n  x: [", whole.replace("input_size", "inputsize")):
        (tmp_path / "config.yaml").write_text(text)
        weight = f"Export.weight_path={tmp_path}/best_model.pdparams"
        done = main_mode("export", tmp_path / "out", weight, f"Global.dataset_dir={small_faces}")
        assert done.returncode == 1 and "trained with is damaged" in done.stderr, done.stderr


@pytest.mark.parametrize("device", ["gpu:x", "tpu", 0])
def test_a_device_that_is_no_device_is_named(run_folder, device):
    with pytest.raises(DeviceError, match="is not a device"):
        paddlex_feat.create_model(NAME, run_folder / "best_model/inference", device=device)


def test_a_device_that_is_not_there_is_said_for_both_ways_to_ask(run_folder):
    with pytest.raises(paddlex_feat.DeviceError, match=r"gpu:99 does not exist here") as caught:
        paddlex_feat.create_model(NAME, run_folder / "best_model/inference", device="gpu:99")
    assert "device=None" in str(caught.value) and "Global.device=auto" in str(caught.value)
    assert paddlex_feat.DependencyError.__name__ in dir(paddlex_feat)


def test_settings_that_mean_the_same_do_not_contradict():
    same = resolve_engine_options(
        device="CPU:0", threads=np.int64(2), engine_config={"device_type": "cpu", "cpu_threads": 2}
    )
    assert same.device == "cpu" and same.threads == 2 and type(same.threads) is int


def test_a_bar_that_is_not_shown_starts_no_thread():
    code = "import threading\nfrom paddlex_feat.runtime.progress import bar\nbar(3, 'x', 'y')"
    code += "\nprint(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"
