"""Runs with a memory of past batches and hard classes: killed within an epoch, and refused before anything is moved."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import CLIP, QUICK, ROOT, TINY, train_tiny

pytest.importorskip("paddle")

from paddlex_feat.models import weights

OPTIONS = (
    "Train.loss.terms=[{name: cross_entropy}, {name: supcon, weight: 0.5}]",
    "Train.samples_per_class=4",
    "Train.memory_batches=3",
    "Train.hard_classes=0.5",
)
SUFFIXES = ("pdparams", "pdmemory", "pdopt")
# SIGKILL before step 9, the fourth of epoch 2, once a checkpoint of an earlier step of that epoch is written.
KILLED = """
import os, signal, sys
from paddlex_feat import cli
from paddlex_feat.training.step import Step

take, taken = Step.__call__, []

def counted(self, *words, **keys):
    taken.append(1)
    if len(taken) == 9:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self, *words, **keys)

Step.__call__ = counted
cli.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_run_killed_within_an_epoch_resumes_to_the_same_bytes(small_faces, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = train_tiny(small_faces, whole, *OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "Train.hard_classes: 2 of the 4 classes of a batch are the nearest of the others." in done.stderr
    settings = ("Global.mode=train", f"Global.dataset_dir={small_faces}", f"Global.output={killed}")
    settings += (*QUICK, *TINY, *OPTIONS, "Train.save_interval_minutes=0.00001")
    words = ["-c", CLIP, *(word for setting in settings for word in ("-o", setting))]
    process = subprocess.run([sys.executable, "-c", KILLED, *words], cwd=ROOT, capture_output=True)
    assert process.returncode == -signal.SIGKILL, process.stderr
    position = weights.read(killed / "latest/latest.pdstates")
    assert position["epoch"] == 1 and position["step_in_epoch"] > 0
    saved = weights.read(killed / "latest/latest.pdmemory")
    assert len(saved["memory_labels"]) == 48 and saved["neighbours"].shape == (8, 3)
    done = train_tiny(small_faces, killed, *OPTIONS, "Train.resume=auto")
    assert done.returncode == 0 and "Resuming after epoch 1" in done.stderr, done.stderr
    for name in ("latest", "best_model", "epoch_3"):
        for suffix in SUFFIXES:
            file = f"{name}/{name}.{suffix}"
            assert (whole / file).read_bytes() == (killed / file).read_bytes(), file


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("Train.memory_batches=3",), "no loss compares images"),
        (
            ("Train.hard_classes=0.5", "Train.samples_per_class=4", "Train.loss.terms=[{name: supcon}]"),
            "no trained head or loss has any",
        ),
        (("Train.hard_classes=0.5",), "samples_per_class has to be set"),
    ],
)
def test_what_cannot_be_used_stops_the_run_before_anything_is_moved(settings, message, small_faces, tmp_path: Path):
    (tmp_path / "latest").mkdir()
    done = train_tiny(small_faces, tmp_path, *settings)
    assert done.returncode == 1 and message in done.stderr, done.stderr
    assert not list(tmp_path.glob("previous_*"))
