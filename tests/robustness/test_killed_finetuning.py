"""SIGKILL during a fine-tuning and an adaptation: the resumed run fits the same maps and delivers the same bytes."""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import CLIP, QUICK, ROOT, TINY, tiny_weights

pytest.importorskip("paddle")
pytestmark = pytest.mark.slow

KILLS = 5
FINE = (
    "Train.method=probe_then_full",
    "Train.adapt=[start,end]",
    "Train.init_head=class_means",
    "Train.probe_epochs=3",
    "Train.epochs_iters=3",
    "Train.average=[last,start]",
    "Train.resume=auto",
)
ADAPT = ("Train.method=adapt",)


@pytest.fixture(scope="module")
def start(small_faces, tmp_path_factory) -> Path:
    return tiny_weights(small_faces, tmp_path_factory.mktemp("start"))


def command(data: Path, output: Path, *settings: str) -> list[str]:
    given = ("Global.mode=train", f"Global.dataset_dir={data}", f"Global.output={output}", *QUICK, *TINY, *settings)
    return [sys.executable, "main.py", "-c", CLIP, *(word for setting in given for word in ("-o", setting))]


@pytest.mark.parametrize(
    "method",
    [pytest.param(FINE, id="finetuning"), pytest.param(ADAPT, id="adaptation", marks=pytest.mark.nightly)],
)
def test_killed_runs_end_with_the_bytes_of_an_uninterrupted_one(small_faces, start, tmp_path, method):
    settings = (*method, f"Train.pretrain_weight_path={start}")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    began = time.monotonic()
    assert subprocess.run(command(small_faces, whole, *settings), cwd=ROOT).returncode == 0
    seconds, chance, kills = time.monotonic() - began, random.Random(3), 0
    while kills < KILLS:
        process = subprocess.Popen(command(small_faces, killed, *settings), cwd=ROOT, stderr=subprocess.DEVNULL)
        try:
            process.wait(chance.uniform(0.3, 0.9) * seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        else:  # begin again
            shutil.rmtree(killed)
    assert subprocess.run(command(small_faces, killed, *settings), cwd=ROOT).returncode == 0
    for name in ("best_model.pdparams", "inference/inference.pdiparams"):
        assert (whole / "best_model" / name).read_bytes() == (killed / "best_model" / name).read_bytes(), name
    results = [json.loads((folder / "train_result.json").read_text()) for folder in (whole, killed)]
    assert results[0] == results[1] and results[1]["done_flag"] is True
