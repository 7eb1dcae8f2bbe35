"""Training from random weights: what Train.init_backbone is worth, and the shipped recipe."""

from __future__ import annotations

import json

import pytest
from support.runs import train_here

from paddlex_feat.config import load

SHORT = ("Train.epochs_iters=6", "Train.input_size=64", "Train.eval_interval=6", "Train.save_interval=6")


def last_loss(output) -> float:
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return next(row["CELoss"] for row in reversed(rows) if row["kind"] == "train")


@pytest.mark.slow
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
