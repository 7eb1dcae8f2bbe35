"""Fine-tuning in whole runs: what happens before the first step and after the last epoch, interrupted and repeated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from support.runs import CLIP, TINY, tiny_weights, train, train_here, train_tiny

paddle = pytest.importorskip("paddle")

from paddlex_feat.config import load
from paddlex_feat.config.auto_recipe import MEASURED
from paddlex_feat.errors import Interrupted
from paddlex_feat.inference.model_info import read_info
from paddlex_feat.models import weights
from paddlex_feat.training.final_candidates import FinalCandidates
from paddlex_feat.training.probe import Probe
from paddlex_feat.training.step import Step
from paddlex_feat.training.trainer import Trainer

PROBE = ("Train.probe_epochs=3", "Train.init_head=class_means", "Train.eval_start=True", "Train.epochs_iters=2")
MODERN = (
    *PROBE,
    "Train.method=probe_then_full",
    "Train.optimizer=adamw",
    "Train.learning_rate=0.001",
    "Train.no_decay=vectors",
    "Train.layer_decay=0.8",
    "Train.head_lr_mult=10",
    "Train.epochs_iters=3",  # so that there are two averages, of three epochs and of two
    "Train.average=[last]",
    "Train.ema_epochs=1",
)


def tensors(root: Path, name: str) -> dict[str, np.ndarray]:
    return weights.read(root / name / f"{name}.pdparams")


def equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


@pytest.fixture(scope="module")
def whole(small_faces, tmp_path_factory) -> Path:
    """A run that nothing interrupts."""
    output = tmp_path_factory.mktemp("finetuning") / "whole"
    process = train_tiny(small_faces, output, *MODERN)
    assert process.returncode == 0, process.stderr
    return output


@pytest.mark.slow
@pytest.mark.parametrize(("owner", "method"), [(Probe, "_step"), (FinalCandidates, "_measure")], ids=["probe", "end"])
def test_an_interrupted_run_ends_with_the_same_bytes(whole, small_faces, tmp_path, monkeypatch, owner, method):
    plain, calls = getattr(owner, method), []

    def told(self, *arguments):
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted("Interrupted.", where="train")
        return plain(self, *arguments)

    monkeypatch.setattr(owner, method, told)
    process = train_tiny(small_faces, tmp_path, *MODERN)
    assert process.returncode == 1 and "everything is saved in" in process.stderr
    monkeypatch.undo()
    process = train_tiny(small_faces, tmp_path, *MODERN, "Train.resume=auto")
    assert process.returncode == 0, process.stderr
    for name in ("best_model", "latest", "epoch_3"):
        assert equal(tensors(tmp_path, name), tensors(whole, name)), name


@pytest.mark.slow
@pytest.mark.parametrize("written", ["now", "by version 1"])
def test_a_probed_run_resumed_between_its_epochs_ends_with_the_same_bytes(whole, small_faces, tmp_path, written):
    """Neck and head have had an optimizer before, that of the probe; files of version 1 count it."""
    begun = tmp_path / "begun"
    shutil.copytree(whole / "epoch_1", begun)
    if written != "now":
        state = weights.read(begun / "epoch_1.pdopt")
        assert all(name.endswith("_0") for name in state)
        probed = {name: name.removesuffix("_0") + "_1" for name in state if not name.startswith("backbone.")}
        assert len(probed) > 4
        weights.write(begun / "epoch_1.pdopt", {probed.get(name, name): value for name, value in state.items()})
    output = tmp_path / "out"
    process = train_tiny(small_faces, output, *MODERN, f"Train.resume_path={begun}/epoch_1.pdparams")
    assert process.returncode == 0, process.stderr
    for name in ("latest", "epoch_3"):
        assert equal(tensors(output, name), tensors(whole, name)), name


@pytest.fixture(scope="module")
def start(small_faces, tmp_path_factory) -> Path:
    return tiny_weights(small_faces, tmp_path_factory.mktemp("start"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("owner", "method"),
    [
        pytest.param(Trainer, "_metrics_of", id="measure"),
        pytest.param(Probe, "_step", id="probe", marks=pytest.mark.nightly),
    ],
)
def test_a_map_is_fitted_once_however_often_it_is_interrupted(small_faces, start, tmp_path, monkeypatch, owner, method):
    def score(self, metrics):
        """One by which the adapted start is better than the start: twelve queries may find otherwise."""
        progress = self.state.progress
        adapted = bool(progress.start) and metrics is not progress.start and not progress.step
        return metrics["recall1"] / 2 + 0.4 * adapted, 0.0

    monkeypatch.setattr(Trainer, "_score", score)
    settings = (*MODERN, "Train.adapt=[start,end]", "Train.average=[last,start]", f"Train.pretrain_weight_path={start}")
    process = train_tiny(small_faces, tmp_path / "whole", *settings)
    assert process.returncode == 0, process.stderr
    assert "[Eval][adapted start]" in process.stderr and "the map is not applied" not in process.stderr
    plain, resume = getattr(owner, method), ()

    def told(self, *arguments):
        if owner is Probe or (self.state.progress.start and not self.state.progress.step):
            raise Interrupted("Interrupted.", where="train")
        return plain(self, *arguments)

    for _ in range(2):
        monkeypatch.setattr(owner, method, told)
        process = train_tiny(small_faces, tmp_path / "killed", *settings, *resume)
        assert process.returncode == 1 and "everything is saved in" in process.stderr
        resume = ("Train.resume=auto",)
    monkeypatch.setattr(owner, method, plain)
    process = train_tiny(small_faces, tmp_path / "killed", *settings, *resume)
    assert process.returncode == 0, process.stderr
    for name in ("best_model", "latest", "epoch_3"):
        assert equal(tensors(tmp_path / "killed", name), tensors(tmp_path / "whole", name)), name


def test_the_log_tells_what_was_done(whole):
    log = (whole / "train.log").read_text()
    for text in (
        "Class vectors start at the mean features of 8 classes.",
        "Linear probe: 3 epochs, ",
        "[Eval][mean of",
    ):
        assert text in log
    rows = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if row["kind"] == "train"]
    logged = [row for row in steps if row["step"] % 10 == 0]  # Train.log_interval
    assert logged and all(row["grad_norm"] > 0 for row in logged)


def test_a_probe_leaves_the_backbone_as_it_is(small_faces, tmp_path):
    start = tmp_path / "start.pdparams"
    process = train_tiny(small_faces, tmp_path / "one", "Train.epochs_iters=1")
    assert process.returncode == 0, process.stderr
    weights.write(start, tensors(tmp_path / "one", "latest"))
    output = tmp_path / "two"
    process = train_tiny(small_faces, output, *PROBE, "Train.method=probe", f"Train.pretrain_weight_path={start}")
    assert process.returncode == 0, process.stderr
    before, after = weights.read(start), tensors(output, "latest")
    changed = {name.partition(".")[0] for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"neck", "head"}
    result = json.loads((output / "train_result.json").read_text())
    assert result["done_flag"]
    process = train_tiny(small_faces, output, *PROBE, "Train.method=probe", "Train.resume=auto")
    assert process.returncode == 0 and "Nothing is left to train" in (output / "train.log").read_text()


@pytest.mark.slow
def test_two_processes_probe_and_average(small_faces, tmp_path):
    settings = (*TINY, *MODERN, "Train.batch_size=8", "Train.epochs_iters=2")
    process = train(small_faces, tmp_path, *settings, "Global.device=cpu:0,1", config=CLIP)
    assert process.returncode == 0, process.stderr
    log = (tmp_path / "train.log").read_text()
    assert "Linear probe: 3 epochs" in log and "[Eval][mean of the last 2 epochs]" in log


@pytest.mark.slow
def test_the_last_epochs_and_the_evaluation_have_sizes_of_their_own(small_faces, tmp_path, monkeypatch):
    seen, plain = [], Step.__call__

    def noted(self, batches, measure=False):
        seen.append(batches[0][0].shape[1])
        return plain(self, batches, measure)

    monkeypatch.setattr(Step, "__call__", noted)
    sizes = ("Train.epochs_iters=2", "Train.final_epochs=1", "Train.final_size=48", "Train.eval_size=40")
    process = train_here(small_faces, tmp_path, *sizes, "Train.loader=processes", "Train.num_workers=1")
    assert process.returncode == 0, process.stderr
    assert seen == [32] * (len(seen) // 2) + [48] * (len(seen) // 2) and len(seen) >= 8
    assert read_info(tmp_path / "best_model/inference").preprocess.size == 40


def test_a_network_of_one_size_refuses_others(small_faces, tmp_path):
    process = train_tiny(small_faces, tmp_path, "Train.eval_size=64", "Train.final_epochs=1", "Train.final_size=24")
    assert process.returncode == 1
    assert "CLIP_vit takes images of one size" in process.stderr
    assert "24 is not a multiple of 16" in process.stderr
    process = train_tiny(small_faces, tmp_path, "Train.final_epochs=1")
    assert process.returncode == 1 and "final_epochs and final_size go together" in process.stderr


def test_a_recipe_that_looks_at_the_data_is_recorded_and_resumed(small_faces, tmp_path):
    settings = ("Train.recipe=auto", "Train.pretrain_weight_path=null", "Train.num_workers=1")
    process = train_tiny(small_faces, tmp_path, *settings)
    assert process.returncode == 0, process.stderr
    assert "Train.recipe=auto: 80 images, 8 classes, 10 images a class." in process.stderr
    assert (
        "  Train.adapt=['end']: linear maps" in process.stderr and "  Train.epochs_iters=3, as given" in process.stderr
    )
    assert "Train.adapt=end: " in process.stderr and "UserWarning" not in process.stderr
    recorded = load.load(str(tmp_path / "config.yaml"), [])[0].Train
    assert recorded.adapt == ["end"] and set(recorded.recipe_keeps) == set(MEASURED)
    process = train_tiny(small_faces, tmp_path, *settings, "Train.resume=auto", "Train.epochs_iters=4")
    assert process.returncode == 0, process.stderr
    assert "images a class" not in process.stderr  # nothing was chosen again
