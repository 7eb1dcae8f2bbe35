"""EfficientNet_Lite0_rec in every mode, from the weights of the extra `starter` and without any network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.runs import run_here
from support.starter import needs_starter

paddle = pytest.importorskip("paddle")

from paddlex_feat import create_model
from paddlex_feat.errors import DependencyError, OutputError, WeightsError
from paddlex_feat.inference import starter_model
from paddlex_feat.inference.model_info import folder_problem
from paddlex_feat.models import weights
from paddlex_feat.modes import train_adapt, train_map
from paddlex_feat.training.adaptation.choose import choose_among
from paddlex_feat.training.trainer import Trainer

pytestmark = needs_starter
EXPECTED = ("Raw pixels are better", "No epoch was better than the start")  # of six faces a class
NAME = "EfficientNet_Lite0_rec"


@pytest.fixture(scope="module")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def no_network(cache, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(cache))
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")


def mode(name: str, output: Path, *settings: str) -> dict:
    words = [f"Global.mode={name}", f"Global.output={output}", "Global.device=cpu", *settings]
    done = run_here("-c", NAME, *(word for setting in words for word in ("-o", setting)))
    lines = [line for line in done.stderr.splitlines() if "WARNING" in line]
    warnings = [line for line in lines if not any(text in line for text in EXPECTED)]
    assert done.returncode == 0 and not warnings, done.stderr
    return json.loads((output / f"{name}_result.json").read_text())


def features(files: list[str], **settings) -> np.ndarray:
    return np.stack([result.feature for result in create_model(NAME, device="cpu", **settings).predict(files[:3])])


@pytest.mark.slow
def test_create_model_makes_the_model_once_and_then_needs_no_weights(cache, files, monkeypatch):
    paddle.seed(5)
    expected = paddle.rand([3]).numpy()
    paddle.seed(5)
    first = features(files)
    assert np.array_equal(paddle.rand([3]).numpy(), expected)  # the caller's generator has not moved
    (folder,) = [entry for entry in (cache / "starter_models").iterdir() if entry.is_dir()]
    assert folder.name.startswith(f"{NAME}-") and first.shape == (3, 1280)
    assert np.allclose(np.linalg.norm(first, axis=1), 1, atol=1e-6)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    monkeypatch.setattr(starter_model, "starter_weights", lambda: pytest.fail("the weights were looked for"))
    assert np.array_equal(features(files), first)
    assert before == {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_the_graph_holds_no_batchnorm_for_paddle_to_fold_at_every_start(cache):
    assert ".batch_norm_" not in (starter_model.starter_model() / "inference.json").read_text()


def test_mode_predict_takes_the_starter_where_no_model_is_named(files, tmp_path):
    result = mode("predict", tmp_path, f"Predict.input={files[0]}", "Predict.save_format=npz")
    assert result["images"] == 1
    with np.load(tmp_path / "features.npz") as saved:
        assert np.abs(saved["features"] - features(files)[:1]).max() < 1e-6


@pytest.mark.slow
def test_a_model_is_made_again_where_it_is_damaged_or_the_code_has_changed(cache, files, monkeypatch):
    first = features(files)
    folder = starter_model.starter_model()
    (folder / "inference.pdiparams").write_bytes(b"")
    assert folder_problem(folder, NAME)
    assert np.array_equal(features(files), first) and not folder_problem(folder, NAME)
    monkeypatch.setattr(starter_model, "_MADE_BY", starter_model._MADE_BY[:1])
    other = starter_model.starter_model()
    assert other != folder and not folder_problem(other, NAME) and not folder_problem(folder, NAME)


def test_a_model_that_cannot_be_made_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "empty"))

    def missing():
        raise DependencyError("The starter's weights are not installed.")

    with monkeypatch.context() as patch:
        patch.setattr(starter_model, "starter_weights", missing)
        with pytest.raises(DependencyError):
            create_model(NAME)
    assert not (tmp_path / "empty").exists()
    with monkeypatch.context() as patch:
        patch.setattr(starter_model, "_TOLERANCE", -1)
        with pytest.raises(WeightsError, match="differs from the weights"):
            create_model(NAME)
    assert [entry.name for entry in (tmp_path / "empty/starter_models").iterdir()] == [".lock"]
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(OutputError) as caught:
        create_model(NAME)
    assert caught.value.code == "cache-unwritable" and "PADDLE_PDX_CACHE_HOME" in caught.value.fix


@pytest.mark.slow
def test_the_starter_is_evaluated_trained_and_exported(small_faces, tmp_path):
    data = (f"Global.dataset_dir={small_faces}", "Train.input_size=64")
    start = mode("evaluate", tmp_path / "start", *data, "Evaluate.weight_path=starter")
    quick = ("Train.batch_size=16", "Train.epochs_iters=1", "Train.learning_rate=1e-4")
    run = mode("train", tmp_path / "run", *data, *quick)
    best_score = run["models"]["best"]["score"]
    assert start["metrics"]["recall1"] > 0.9 and best_score > 0.9
    best = tmp_path / "run/best_model/best_model.pdparams"
    assert sorted(weights.read(best))[0].startswith("backbone.")
    again = mode("evaluate", tmp_path / "again", *data, f"Evaluate.weight_path={best}")
    assert again["metrics"]["recall1"] == pytest.approx(best_score, abs=1e-5)


@pytest.fixture
def other_pooling(monkeypatch):
    """Takes the second exponent, whatever is better."""

    def second(views, *rest):
        return 1, choose_among(views[1:], *rest)[1]

    for module in (train_adapt, train_map):
        monkeypatch.setattr(module, "choose_among", second)
    monkeypatch.setattr(Trainer, "measure_adapted", lambda self: True)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.usefixtures("other_pooling")
def test_an_adaptation_may_take_another_pooling(small_faces, tmp_path):
    data = (f"Global.dataset_dir={small_faces}", "Train.input_size=64")
    run = mode("train", tmp_path / "run", *data, "Train.method=adapt")
    best = tmp_path / "run/best_model/best_model.pdparams"
    assert run["adaptation"]["applied"] and run["adaptation"]["exponent"] == weights.read(best)["backbone.pool.p"] == 4
    again = mode("evaluate", tmp_path / "again", *data, f"Evaluate.weight_path={best}")
    assert again["metrics"] == pytest.approx(run["adaptation"]["metrics"], abs=1e-5)


@pytest.mark.nightly
@pytest.mark.slow
@pytest.mark.usefixtures("other_pooling")
def test_a_training_may_begin_with_another_pooling(small_faces, tmp_path):
    data = (f"Global.dataset_dir={small_faces}", "Train.input_size=64", "Train.adapt=[start]")
    mode("train", tmp_path, *data, "Train.batch_size=16", "Train.epochs_iters=1", "Train.learning_rate=1e-6")
    trained = [file for file in tmp_path.rglob("*.pdparams") if file.parent.name != "best_model"]
    assert trained and weights.read(trained[0])["backbone.pool.p"] == pytest.approx(4, abs=1e-3)


@pytest.mark.slow
def test_every_form_is_exported_from_the_starter(small_faces, tmp_path):
    for package in ("onnxruntime", "openvino", "paddle2onnx"):
        pytest.importorskip(package)
    data = f"Global.dataset_dir={small_faces}"
    result = mode("export", tmp_path / "all", data, "Export.format=[onnx, openvino]")
    assert set(result["differences"]) == {"paddle", "onnx", "openvino"} and result["largest_difference"] < 1e-5
    result = mode("export", tmp_path / "old", data, "Global.export_with_pir=False", "Export.input_size=dynamic")
    assert "inference.pdmodel" in result["files"] and result["largest_difference"] < 1e-5
