"""Trainings with a classifier that draws its classes: against one in the network, resumed, killed, in parts."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.runs import CLIP, QUICK, ROOT, TINY, train_tiny

pytest.importorskip("paddle")

from paddlex_feat.errors import OutputError
from paddlex_feat.training.classifier import head_file
from paddlex_feat.training.run_folder import RunFolder
from paddlex_feat.training.step import Step

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("PADDLEX_FEAT_KILLS", "4"))
HALF = ("Model.head_sample=0.5", "Model.head=arc_margin")
# Of a small scale: AdamW divides by the gradient's size, so that a last bit grows soon.
ADAMW = ("Train.optimizer=adamw", "Train.learning_rate=0.001", "Model.head=arc_margin", "Model.arc_scale=8")
HEAD = f"latest/latest.{head_file.SUFFIX}"


def losses(run: Path) -> list[float]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["kind"] == "train"]


def trained(data: Path, output: Path, *settings: str) -> Path:
    done = train_tiny(data, output, *settings)
    assert done.returncode == 0, done.stderr
    return output


def same_end(one: Path, other: Path) -> None:
    for name in ("best_model/best_model.pdparams", "latest/latest.pdparams", "latest/latest.pdopt", HEAD):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


@pytest.fixture(scope="module")
def whole(small_faces, tmp_path_factory) -> Path:
    """A run that nothing interrupts."""
    return trained(small_faces, tmp_path_factory.mktemp("head") / "whole", *HALF)


@pytest.mark.parametrize("more", [(), ADAMW], ids=["recipe", "adamw"])
def test_all_classes_drawn_train_as_the_classifier_in_the_network_does(small_faces, tmp_path, more):
    """40 epochs of 5 steps: the same start, and the same losses to 1e-5."""
    settings = (
        *more,
        "Train.epochs_iters=40",
        "Train.eval_interval=40",
        "Train.save_interval=40",
        "Train.log_interval=1",
    )
    dense = trained(small_faces, tmp_path / "dense", *settings)
    drawn = trained(small_faces, tmp_path / "drawn", *settings, "Model.head_sample=1", "Train.head_save_interval=40")
    assert len(losses(dense)) == 200
    np.testing.assert_allclose(losses(drawn), losses(dense), rtol=1e-5, atol=1e-5)


def test_only_the_newest_state_holds_the_class_vectors(whole):
    found = {path.parent.name for path in whole.rglob(f"*.{head_file.SUFFIX}")}
    assert found == {"latest"} and (whole / "epoch_3/epoch_3.pdparams").is_file()
    arrays = load_file(whole / HEAD)
    assert {name: array.shape for name, array in arrays.items()} == {"weight": (8, 512), "velocity": (8, 512)}


def test_a_resumed_run_ends_with_the_same_bytes(whole, small_faces, tmp_path, monkeypatch):
    plain, calls = Step.__call__, []

    def told(self, *arguments, **settings):
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return plain(self, *arguments, **settings)

    monkeypatch.setattr(Step, "__call__", told)
    often = ("Train.save_interval_minutes=1e-9", "Train.log_interval=1")
    assert train_tiny(small_faces, tmp_path, *HALF, *often).returncode != 0
    monkeypatch.undo()
    done = train_tiny(small_faces, tmp_path, *HALF, "Train.resume=auto")
    assert done.returncode == 0 and "Resuming after epoch 1, step 7" in done.stderr, done.stderr
    same_end(tmp_path, whole)


def test_an_interval_of_two_epochs_leaves_the_state_of_the_second(small_faces, tmp_path):
    trained(
        small_faces, tmp_path, *HALF, "Train.head_save_interval=2", "Train.epochs_iters=3", "Train.keep_checkpoints=3"
    )
    assert (tmp_path / HEAD).is_file()  # of the end
    states = [
        json.loads((tmp_path / f"{n}/{n}.info.json").read_text())["epoch"] for n in ("latest", "epoch_1", "epoch_2")
    ]
    assert states == [3, 1, 2]


def test_the_interval_of_class_vectors_does_not_depend_on_the_others(small_faces, tmp_path, monkeypatch):
    saved = []
    plain = RunFolder.save

    def told(self, names, state, *rest):
        saved.append((state.progress.epoch, sorted(names)))
        plain(self, names, state, *rest)

    monkeypatch.setattr(RunFolder, "save", told)
    rare = ("Train.save_interval=4", "Train.eval_interval=100", "Train.epochs_iters=7")
    trained(small_faces, tmp_path, *HALF, *rare, "Train.head_save_interval=3")
    assert [epoch for epoch, names in saved if "latest" in names] == [3, 6, 7]
    assert [epoch for epoch, names in saved if f"epoch_{epoch}" in names] == [4, 7]


def test_a_disk_too_full_for_the_class_vectors_still_takes_the_network(small_faces, tmp_path, monkeypatch):
    def full(*arguments):
        raise OutputError("There is no room.", where="disk")

    monkeypatch.setattr(head_file, "require_disk_space", full)
    done = train_tiny(small_faces, tmp_path, *HALF)
    assert done.returncode == 1 and "There is no room" in done.stderr
    assert (tmp_path / "best_model/best_model.pdparams").is_file() and (tmp_path / "epoch_1").is_dir()
    monkeypatch.undo()
    again = train_tiny(small_faces, tmp_path, *HALF, "Train.resume=auto", "Train.epochs_iters=1")
    assert again.returncode == 0 and "holds the network of an earlier run without its class vectors" in again.stderr


def test_a_run_with_class_vectors_is_not_resumed_without(whole, small_faces, tmp_path):
    resume = f"Train.resume_path={whole}/latest/latest.pdparams"
    done = train_tiny(small_faces, tmp_path, "Model.head=arc_margin", resume, "Train.epochs_iters=4")
    assert done.returncode == 1 and "Model.head_sample is null" in done.stderr


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("missing", "has no file of class vectors"),
        ("cut", "it is damaged"),
        ("nan", "holds numbers that are not finite"),
        ("fewer", "weight has shape [7, 512]"),
        ("step", "its step is 14, and not 15"),
        ("other", "it holds moment1, moment2, weight"),
    ],
)
def test_a_state_without_its_class_vectors_is_refused(whole, small_faces, tmp_path, change, said):
    shutil.copytree(whole / "latest", tmp_path / "latest")
    path, arrays = tmp_path / HEAD, load_file(whole / HEAD)
    about = {"kind": "class vectors of paddlex_feat", "classes": "8", "step": "15"}
    if change == "missing":
        path.unlink()
    elif change == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif change == "nan":
        arrays["weight"][3, 5] = np.nan
        save_file(arrays, path, about)
    elif change == "fewer":
        save_file({name: array[:7].copy() for name, array in arrays.items()}, path, about)
    elif change == "step":
        save_file(arrays, path, about | {"step": "14"})
    else:
        save_file({"weight": arrays["weight"], "moment1": arrays["weight"], "moment2": arrays["weight"]}, path, about)
    resume = f"Train.resume_path={tmp_path}/latest/latest.pdparams"
    done = train_tiny(small_faces, tmp_path / "out", *HALF, resume, "Train.epochs_iters=4")
    assert done.returncode == 1 and said in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("Train.method=probe",), "a linear probe trains a classifier that is part of the network"),
        (("Train.freeze=[head]",), "leave head out of Train.freeze"),
        (("Train.amp=O1",), "use Train.amp_dtype=bfloat16"),
        (("Model.head_sample=0",), "Model.head_sample"),
        (("Train.hard_classes=0.5", "Train.samples_per_class=2"), "hard_classes needs class vectors"),
    ],
)
def test_what_does_not_go_together_is_refused(small_faces, tmp_path, settings, said):
    done = train_tiny(small_faces, tmp_path, *HALF, *settings)
    assert done.returncode != 0 and said in done.stderr, done.stderr


def test_class_vectors_start_at_the_mean_features(small_faces, tmp_path):
    start = trained(small_faces, tmp_path / "start", "Train.epochs_iters=1") / "best_model/best_model.pdparams"
    settings = (f"Train.pretrain_weight_path={start}", "Train.init_head=class_means", "Train.log_interval=1")
    first = [
        losses(trained(small_faces, tmp_path / name, *settings, "Train.epochs_iters=1", *more))[0]
        for name, more in (("dense", ()), ("drawn", ("Model.head_sample=1",)))
    ]
    assert first[0] == pytest.approx(first[1], rel=1e-5)


def command(data: Path, output: Path, *settings: str) -> list[str]:
    given = (
        "Global.mode=train",
        f"Global.dataset_dir={data}",
        f"Global.output={output}",
        *QUICK,
        *TINY,
        *HALF,
        *settings,
    )
    return [sys.executable, "main.py", "-c", CLIP, *(word for setting in given for word in ("-o", setting))]


def wait_for_workers(output: Path) -> None:
    """Wait until no process of a killed job is left, which would hold its folder."""
    until = time.monotonic() + 60
    while any(str(output).encode() in content(entry / "environ") for entry in Path("/proc").glob("[0-9]*")):
        assert time.monotonic() < until, "a worker has outlived its job"
        time.sleep(0.2)


def content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # it has ended
        return b""


@pytest.mark.parametrize("devices", ["cpu", pytest.param("cpu:0,1", marks=pytest.mark.nightly)])
def test_killed_runs_end_with_the_bytes_of_an_uninterrupted_one(small_faces, tmp_path, devices):
    settings = (f"Global.device={devices}", "Train.resume=auto", "Train.epochs_iters=12", "Train.eval_interval=4")
    settings += ("Train.batch_size=8",) if devices != "cpu" else ()
    one, killed, chance = tmp_path / "whole", tmp_path / "killed", random.Random(5)
    began = time.monotonic()
    assert subprocess.run(command(small_faces, one, *settings), cwd=ROOT).returncode == 0
    seconds, done = time.monotonic() - began, 0
    while done < KILLS:
        process = subprocess.Popen(
            command(small_faces, killed, *settings, "Train.save_interval_minutes=0.002"),
            cwd=ROOT,
            start_new_session=True,
        )
        try:
            process.wait(chance.uniform(0.3, 0.95) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            wait_for_workers(killed)
            done += 1
        else:
            assert process.returncode == 0
            shutil.rmtree(killed)
    assert subprocess.run(command(small_faces, killed, *settings), cwd=ROOT).returncode == 0
    same_end(killed, one)
