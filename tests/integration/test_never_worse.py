"""Training from weights: the start as the first best_model, validation on held-out training images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.runs import QUICK, TINY, run_here, train_here, train_tiny

pytest.importorskip("paddle")

from paddlex_feat.config.load import load
from paddlex_feat.evaluation.embed import embed
from paddlex_feat.models import recognizer, weights
from paddlex_feat.modes import train_delivery
from paddlex_feat.modes.build import exporter_of
from paddlex_feat.modes.parts import network_spec
from paddlex_feat.modes.worker import Worker
from paddlex_feat.runtime.distributed import ProcessGroup

SPLIT = ("Train.validation=split", "Train.validation_percent=25", "Train.batch_size=8")


@pytest.fixture(scope="module")
def tiny_run(small_faces, tmp_path_factory) -> Path:
    """One epoch of the tiny network from scratch, whose best weights other runs start from."""
    folder = tmp_path_factory.mktemp("tiny")
    done = train_tiny(small_faces, folder, "Train.epochs_iters=1")
    assert done.returncode == 0, done.stderr
    assert result(folder)["start"] is None and result(folder)["delivered"] == "epoch"
    return folder


def start_from(run: Path) -> str:
    return f"Train.pretrain_weight_path={run}/best_model/best_model.pdparams"


def result(folder: Path) -> dict:
    return json.loads((folder / "train_result.json").read_text())


def evaluations(folder: Path) -> list[dict]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["kind"] == "eval"]


@pytest.mark.slow
def test_measuring_the_start_changes_no_byte_of_the_epochs(tiny_run, small_faces, tmp_path):
    for name, word in (("auto", "auto"), ("off", "False")):
        settings = (start_from(tiny_run), f"Train.eval_start={word}", "Train.epochs_iters=2")
        assert train_tiny(small_faces, tmp_path / name, *settings).returncode == 0
    for epoch in ("epoch_1/epoch_1", "epoch_2/epoch_2"):
        for suffix in ("pdparams", "pdopt"):
            one, other = (tmp_path / name / f"{epoch}.{suffix}" for name in ("auto", "off"))
            assert one.read_bytes() == other.read_bytes()
    assert [row["epoch"] for row in evaluations(tmp_path / "auto")] == [0, 1, 2]
    assert [row["epoch"] for row in evaluations(tmp_path / "off")] == [1, 2]


@pytest.mark.slow
def test_a_run_that_only_gets_worse_delivers_its_start(run_folder, small_faces, tmp_path):
    done = train_here(small_faces, tmp_path, start_from(run_folder), "Train.learning_rate=1000", "Train.epochs_iters=1")
    first, *later = evaluations(tmp_path)
    if done.returncode:  # another processor may overflow: the error names the weights all the same
        assert "best_model holds the weights that training started from" in done.stderr
    else:
        assert "No epoch was better than the start" in done.stderr and later[0]["recall1"] < first["recall1"]
    found = result(tmp_path)
    assert (found["delivered"], found["delivered_epoch"]) == ("start", 0)
    assert found["start"] == {name: first[name] for name in ("recall1", "recall5", "mAP")}
    before, kept = (weights.read(f / "best_model/best_model.pdparams") for f in (run_folder, tmp_path))
    assert all(np.array_equal(before[name], kept[name]) for name in before)
    assert (tmp_path / "best_model/inference/inference.yml").is_file()


def test_a_loss_that_is_not_finite_fails_the_run_and_leaves_the_start(tiny_run, small_faces, tmp_path):
    done = train_tiny(small_faces, tmp_path, start_from(tiny_run), "Train.learning_rate=1e30", "Train.warmup_steps=0")
    assert done.returncode == 1 and "best_model holds the weights that training started from" in done.stderr
    found = result(tmp_path)
    assert not found["done_flag"] and found["delivered"] == "start"
    before, kept = (weights.read(f / "best_model/best_model.pdparams") for f in (tiny_run, tmp_path))
    assert all(np.array_equal(before[name], kept[name]) for name in before)


@pytest.mark.slow
def test_a_run_that_failed_in_its_first_epoch_goes_on_from_the_start(tiny_run, small_faces, tmp_path):
    usual = (start_from(tiny_run), "Train.epochs_iters=2", "Train.warmup_steps=0")
    assert train_tiny(small_faces, tmp_path / "failed", *usual, "Train.learning_rate=1e30").returncode == 1
    done = train_tiny(small_faces, tmp_path / "failed", *usual, "Train.resume=auto")
    assert done.returncode == 0 and "Resuming after epoch 0, step 0" in done.stderr, done.stderr
    assert train_tiny(small_faces, tmp_path / "whole", *usual).returncode == 0
    for file in ("latest/latest.pdparams", "latest/latest.pdopt", "best_model/best_model.pdparams"):
        assert (tmp_path / "failed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert [row["epoch"] for row in evaluations(tmp_path / "failed")] == [0, 1, 2]
    assert result(tmp_path / "failed")["start"] == result(tmp_path / "whole")["start"]


def test_on_a_gpu_the_network_itself_measures_the_chosen_weights(tiny_run, files):
    """Called for a device that is not there; Paddle computes on the CPU."""
    config = load(str(tiny_run / "config.yaml"), [("Global.mode", "train")])[0]
    exporter = exporter_of(config, config, recognizer.build(network_spec(config), num_classes=None))
    best = tiny_run / "best_model/best_model.pdparams"
    found = [
        embed(train_delivery._extractor(config, best, exporter, Worker(device, 1, 1, ProcessGroup())), files, 4, 1)
        for device in ("gpu:0", "cpu")
    ]
    assert np.abs(found[0] - found[1]).max() < 1e-5


@pytest.mark.parametrize(("by", "trained"), [("classes", 6), ("images", 8)])
def test_validation_images_choose_the_weights_and_queries_measure_them(tiny_run, small_faces, tmp_path, by, trained):
    done = train_tiny(small_faces, tmp_path, start_from(tiny_run), f"Train.validation_by={by}", *SPLIT)
    assert done.returncode == 0, done.stderr
    assert len(json.loads((tmp_path / "class_map.json").read_text())) == trained
    rows, found = evaluations(tmp_path), result(tmp_path)
    assert {row["set"] for row in rows} == {"validation"} and len(rows) == 4
    delivered, best = rows[found["delivered_epoch"]], max((row["recall1"], row["mAP"]) for row in rows)
    assert (delivered["recall1"], delivered["mAP"]) == best and found["validation"] == {"recall1": best[0]}
    words = (*TINY, *QUICK, "Global.mode=evaluate", f"Global.dataset_dir={small_faces}", f"Global.output={tmp_path}")
    words = (*words, f"Evaluate.weight_path={tmp_path}/best_model/best_model.pdparams")
    done = run_here("-c", "PP-ShiTuV2_rec_CLIP_vit_base", *(part for word in words for part in ("-o", word)))
    assert done.returncode == 0, done.stderr
    evaluated = json.loads((tmp_path / "evaluate_result.json").read_text())["metrics"]
    assert found["test"] == {name: pytest.approx(evaluated[name], abs=1e-9) for name in ("recall1", "recall5", "mAP")}
    images = json.loads((tmp_path / "run.json").read_text())["dataset"]["train"]["images"]
    assert images == 80  # the fingerprint is that of the whole list


@pytest.mark.slow
def test_a_resumed_run_holds_out_the_same_images(tiny_run, small_faces, tmp_path):
    whole = (start_from(tiny_run), *SPLIT, "Train.epochs_iters=2")
    assert train_tiny(small_faces, tmp_path / "whole", *whole).returncode == 0
    resumed = (*whole, f"Train.resume_path={tmp_path}/whole/epoch_1/epoch_1.pdparams")
    done = train_tiny(small_faces, tmp_path / "resumed", *resumed)
    assert done.returncode == 0, done.stderr
    for file in ("latest/latest.pdparams", "latest/latest.pdstates"):
        assert (tmp_path / "resumed" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    assert result(tmp_path / "resumed") == result(tmp_path / "whole") | {
        "models": result(tmp_path / "resumed")["models"]
    }


@pytest.mark.slow
def test_two_processes_measure_the_same_start_and_choose_alike(tiny_run, small_faces, tmp_path):
    settings = (start_from(tiny_run), *SPLIT, "Train.epochs_iters=1")
    for name, device in (("one", "cpu"), ("two", "cpu:0,1")):
        done = train_tiny(small_faces, tmp_path / name, *settings, f"Global.device={device}")
        assert done.returncode == 0, done.stderr
    one, two = (result(tmp_path / name) for name in ("one", "two"))
    assert one["start"] == two["start"] and two["test"].keys() == one["test"].keys()


def test_too_few_classes_to_hold_out_is_found_before_the_first_step(small_faces, tmp_path):
    done = train_tiny(small_faces, tmp_path, "Train.validation=split", "Train.validation_percent=90")
    assert done.returncode == 1 and result(tmp_path)["err_code"] == "validation-impossible"
