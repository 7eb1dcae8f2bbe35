"""Training from random weights: what Train.init_backbone is worth, and the shipped recipe."""

from __future__ import annotations

import json

import pytest
from support.runs import run_here, train_here

from paddlex_feat.config import load

SHORT = ("Train.epochs_iters=6", "Train.input_size=64", "Train.eval_interval=6", "Train.save_interval=6")


def last_loss(output) -> float:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return next(row["CELoss"] for row in reversed(rows) if row["kind"] == "train")


@pytest.mark.nightly
def test_the_loss_falls_sooner_from_delta_orthogonal_weights(faces, tmp_path):
    for init in ("recipe", "delta_orthogonal"):
        done = train_here(faces, tmp_path / init, *SHORT, f"Train.init_backbone={init}", config="PP-ShiTuV2_rec_demo")
        assert done.returncode == 0, done.stderr
    assert last_loss(tmp_path / "delta_orthogonal") < last_loss(tmp_path / "recipe") - 0.2


def test_the_shipped_recipe_trains_and_says_what_it_chose(small_faces, tmp_path):
    done = train_here(small_faces, tmp_path, "Train.epochs_iters=1", config="PP-ShiTuV2_rec_scratch")
    assert done.returncode == 0, done.stderr
    assert "Train.recipe=auto: 80 images, 8 classes" in done.stderr
    config = load.load(str(tmp_path / "config.yaml"), [])[0]
    assert config.Train.init_backbone == "delta_orthogonal" and config.Model.dropout == 0
    assert config.Model.head == "cosface" and config.Train.adapt == ["end"]
    assert json.loads((tmp_path / "train_result.json").read_text())["done_flag"]


def check(data, output) -> tuple[int, str]:
    settings = (f"Global.dataset_dir={data}", "Global.mode=check_dataset", f"Global.output={output}")
    done = run_here("-c", "PP-ShiTuV2_rec_scratch", *(word for setting in settings for word in ("-o", setting)))
    return done.returncode, done.stderr


def test_the_check_takes_the_batch_that_the_recipe_would_choose(faces, tmp_path):
    """Batches of 128 images, the schema's default, would need 32 classes; train.txt has 20."""
    code, log = check(faces, tmp_path)
    assert code == 0 and "Train.batch_size=16" in log


@pytest.mark.parametrize("text", [None, "", "images/missing.pgm\n"])
def test_lists_that_cannot_be_read_are_left_to_the_check(text, small_faces, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "images").symlink_to(small_faces / "images")
    for name in ("gallery.txt", "query.txt"):
        (data / name).write_bytes((small_faces / name).read_bytes())
    if text is not None:
        (data / "train.txt").write_text(text)
    code, log = check(data, tmp_path / "output")
    assert code == 1 and "did not pass" in log and "bug" not in log
