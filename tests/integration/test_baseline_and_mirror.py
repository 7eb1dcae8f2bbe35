"""Raw pixels beside a network in the modes, and features averaged over mirror images in evaluation and prediction."""

from __future__ import annotations

import json
import logging
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import train_tiny

paddle = pytest.importorskip("paddle")

from paddlex_feat.config.load import load
from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.readers import require_lists
from paddlex_feat.inference.extractor import FeatureExtractor, unit_rows
from paddlex_feat.inference.predictor import create_model
from paddlex_feat.modes import evaluate, predict
from paddlex_feat.runtime.distributed import ProcessGroup

CLIP = "PP-ShiTuV2_rec_CLIP_vit_base"


@pytest.fixture(scope="module")
def trained(small_faces: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Output folder of a training with mirror images in its evaluations."""
    output = tmp_path_factory.mktemp("mirror") / "output"
    settings = ("Train.epochs_iters=2", "Train.eval_interval=1", "Evaluate.mirror=True", "Evaluate.save_features=True")
    done = train_tiny(small_faces, output, *settings)
    assert done.returncode == 0, done.stderr
    return output


def settings_of(data: Path, output: Path, model: Path, mirror: bool, baseline: bool) -> list[tuple[str, object]]:
    return [
        ("Global.mode", "evaluate"),
        ("Global.dataset_dir", str(data)),
        ("Global.output", str(output)),
        ("Global.device", "cpu"),
        ("Evaluate.weight_path", str(model)),
        ("Evaluate.save_features", True),
        ("Evaluate.mirror", mirror),
        ("Evaluate.baseline", baseline),
    ]


def run(data: Path, output: Path, model: Path, mirror: bool = False, baseline: bool = True) -> dict:
    return evaluate.run(load(CLIP, settings_of(data, output, model, mirror, baseline))[0], output, ProcessGroup())


def by_hand(folder: Path, files: list[str]) -> np.ndarray:
    """unit(mean of unit features of the image and its mirror image), one image at a time."""
    extract, rows = FeatureExtractor(folder, unit=True), []
    for file in files:
        image = extract.preprocess.resize(read_rgb(file))
        pair = extract(np.stack([image, cv2.flip(image, 1)]))
        rows.append(unit_rows(pair.mean(axis=0, keepdims=True))[0])
    return np.stack(rows)


def test_evaluation_reports_raw_pixels(
    trained: Path, small_faces: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """The figures, the report, and a warning where they are better than those of a hardly trained network."""
    with caplog.at_level(logging.INFO):
        result = run(small_faces, tmp_path, trained / "best_model/inference")
    raw, own = result["baseline"], result["metrics"]
    assert list(raw) == ["name", "recall1", "recall5", "mAP"]
    assert raw["recall1"] > own["recall1"]
    text = f"Raw pixels are better than this network: recall1 {raw['recall1']:.3f} against {own['recall1']:.3f}"
    assert text in caplog.text
    assert text in (tmp_path / "evaluate/report.html").read_text()
    off = run(small_faces, tmp_path, trained / "best_model/inference", baseline=False)
    assert off["baseline"] is None
    assert off["metrics"] == own
    assert "aw pixels" not in (tmp_path / "evaluate/report.html").read_text()


def test_evaluation_averages_mirror_images(trained: Path, small_faces: Path, tmp_path: Path):
    """Features by hand, the same metrics as the training measured with the key, other features without it."""
    folder = trained / "best_model/inference"
    result = run(small_faces, tmp_path, folder, mirror=True)
    lists = require_lists(str(small_faces), ("gallery", "query"))
    found = np.load(tmp_path / "evaluate/features.npz")["features"]
    expected = by_hand(folder, lists["gallery"].files() + lists["query"].files())
    assert np.abs(found - expected).max() < 1e-6
    records = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert max(record["recall1"] for record in records if "recall1" in record) == result["metrics"]["recall1"]
    run(small_faces, tmp_path, folder, mirror=False)
    assert np.abs(np.load(tmp_path / "evaluate/features.npz")["features"] - expected).max() > 1e-4


def test_training_logs_raw_pixels_once(trained: Path):
    """They stay the same, so the first of the two evaluations computes them."""
    log = (trained / "train.log").read_text()
    assert log.count("Baseline without a network (raw pixels, 16 x 16): recall1") == 1


def test_prediction_averages_mirror_images(trained: Path, small_faces: Path, tmp_path: Path):
    """In Python, in a pickled copy and in the mode; the export itself is the same with and without the key."""
    folder, files = (
        trained / "best_model/inference",
        list(require_lists(str(small_faces), ("query",))["query"].files()[:3]),
    )
    expected = by_hand(folder, files)
    model = create_model(CLIP, folder, device="cpu", mirror=True)
    for copy in (model, pickle.loads(pickle.dumps(model))):
        assert np.abs(np.stack([result.feature for result in copy.predict(files)]) - expected).max() < 1e-6
    plain = next(create_model(CLIP, folder, device="cpu").predict(files[:1])).feature
    assert np.abs(plain - expected[0]).max() > 1e-4
    overrides = [
        ("Global.mode", "predict"),
        ("Global.device", "cpu"),
        ("Predict.model_dir", str(folder)),
        ("Predict.input", files),
        ("Predict.mirror", True),
        ("Predict.save_format", "npz"),
    ]
    predict.run(load(CLIP, overrides)[0], tmp_path, ProcessGroup())
    assert np.abs(np.load(tmp_path / "features.npz")["features"] - expected).max() < 1e-6
    assert "mirror" not in (folder / "inference.yml").read_text()
