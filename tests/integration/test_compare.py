"""main.py compare, the threshold that mode evaluate suggests, and whose features a file says it has."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.runs import run_here, run_main
from support.starter import needs_starter

from paddlex_feat.errors import GalleryError
from paddlex_feat.inference.predictor import create_model
from paddlex_feat.search.gallery import Gallery

CONFIG = "PP-ShiTuV2_rec"


@pytest.fixture(scope="module")
def inference(run_folder) -> Path:
    return run_folder / "best_model/inference"


def run(mode: str, output: Path, *words: str) -> dict:
    settings = (f"Global.mode={mode}", f"Global.output={output}", "Global.device=cpu", *words)
    done = run_here("-c", CONFIG, *(word for setting in settings for word in ("-o", setting)))
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((output / f"{mode}_result.json").read_text())


def test_two_pictures_are_compared(faces, inference):
    files = [str(faces / "images/s21" / f"{i:02d}.pgm") for i in (1, 2)]
    rows = np.stack([r.feature for r in create_model(CONFIG, inference).predict(files)]).astype(np.float64)
    done = run_here("compare", *files, "--model_dir", str(inference))
    assert done.returncode == 0 and float(done.stdout) == pytest.approx(rows[0] @ rows[1], abs=1e-4)
    same = run_here("compare", files[0], f"{files[0]}[0,0,92,112]", "--model_dir", str(inference))
    assert same.stdout == "1.0000\n"
    for wrong, told in (
        (("nothing.jpg", files[0]), "cannot be read"),
        ((files[0], f"{files[1]}[1,2,3]"), "four numbers"),
        ((files[0], f"{files[1]}[500,500,600,600]"), "no pixel"),
        ((*files, "--model", "Other"), "PP-ShiTuV2_rec, not Other"),
    ):
        words = wrong if "--model" not in wrong else (*wrong,)
        done = run_here("compare", *words, "--model_dir", str(inference))
        assert done.returncode == 1 and told in done.stderr, done.stderr


@needs_starter
@pytest.mark.slow
def test_without_a_model_the_starter_compares(faces):
    done = run_main("compare", str(faces / "images/s21/01.pgm"), str(faces / "images/s21/02.pgm"))
    assert done.returncode == 0 and 0.5 < float(done.stdout) < 1


def test_evaluations_threshold_is_carried_over_for_the_same_model_alone(
    faces, small_faces, run_folder, inference, tmp_path
):
    out = tmp_path / "run"
    shutil.copytree(run_folder, out)
    data = f"Global.dataset_dir={small_faces}"
    evaluated = run("evaluate", out, data, f"Evaluate.weight_path={out}/best_model/best_model.pdparams")
    model = create_model(CONFIG, out / "best_model/inference", device="cpu")
    assert evaluated["model"] == model.identity.as_json()
    suggested = evaluated["suggested_threshold"]
    run("index", out, data, f"Predict.model_dir={out}/best_model/inference")
    with Gallery(out / "images.gallery", model) as gallery:
        assert gallery.suggested().threshold == suggested
        found = gallery.threshold()  # so few labels make no promise of their own
        assert found.threshold == suggested and found.as_json()["source"] == "evaluation"
        query = faces / "images/s21/01.pgm"
        assert next(iter(gallery.search(str(query), threshold="evaluation"))).threshold == suggested
    by_folder = run("evaluate", tmp_path / "b", data, f"Evaluate.weight_path={inference}")
    assert by_folder["model"] == evaluated["model"]
    weights = out / "best_model/best_model.pdparams"
    weights.write_bytes(weights.read_bytes() + b" ")  # no longer those of run.json
    shutil.rmtree(tmp_path / "b")
    file = out / "evaluate_result.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": {**evaluated["model"], "digest": "0" * 64}}))
    (out / "images.gallery").unlink()
    run("index", out, data, f"Predict.model_dir={out}/best_model/inference")
    with Gallery(out / "images.gallery") as gallery:
        assert gallery.suggested() is None
        with pytest.raises(GalleryError, match="knows no threshold"):
            gallery.answers(np.eye(1, gallery.identity.dimension, dtype=np.float32), 1, "evaluation")


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_files_of_features_name_their_model_and_others_are_refused(form, faces, inference, tmp_path):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    picture = faces / "images/s21/01.pgm"
    given = f"[{{img: {picture}, boxes: [[0, 0, 50, 60], [5, 5, 80, 90]]}}, {picture}]"
    words = (f"Predict.model_dir={inference}", f"Predict.input={given}", f"Predict.save_format={form}")
    run("predict", tmp_path, *words)
    file = tmp_path / f"features.{form}"
    model = (f"Predict.model_dir={inference}", "Index.action=import", f"Index.input={file}")
    assert run("index", tmp_path, *model)["images"] == 3  # boxes of a picture are images of their own
    with Gallery(tmp_path / "images.gallery") as gallery:
        assert [item.key for item in gallery.items()] == [
            f"{picture}[0,0,50,60]",
            f"{picture}[5,5,80,90]",
            str(picture),
        ]
        assert all(item.path == str(picture) for item in gallery.items())
    other = tmp_path / "other"
    shutil.copytree(inference, other)
    text = (other / "inference.yml").read_text()
    (other / "inference.yml").write_text(text.replace("bilinear", "bicubic"))
    settings = (f"Predict.model_dir={other}", "Index.action=import", f"Index.input={file}")
    words = [w for s in ("Global.mode=index", f"Global.output={tmp_path / 'o'}", *settings) for w in ("-o", s)]
    done = run_here("-c", CONFIG, *words)
    assert done.returncode == 1 and "cannot be compared" in done.stderr
