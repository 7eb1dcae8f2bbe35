"""Runs that are killed without warning, again and again, and go on as if nothing had happened."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import QUICK, ROOT, train

pytest.importorskip("paddle")
pytestmark = pytest.mark.slow

KILLS, EPOCHS = 30, 60  # a run so long that a fast machine does not finish it between the kills
OPTIONS = (
    "Train.resume=auto",
    f"Train.epochs_iters={EPOCHS}",
    "Train.eval_interval=2",
    "Train.keep_checkpoints=3",
    "Train.ema_decay=0.99",
)


def start(data: Path, output: Path) -> subprocess.Popen[bytes]:
    settings = ("Global.mode=train", f"Global.dataset_dir={data}", f"Global.output={output}", *QUICK, *OPTIONS)
    # `latest` every 0.3 s, so that many kills fall into the middle of an epoch and of a write.
    words = [w for s in (*settings, "Train.save_interval_minutes=0.005") for w in ("-o", s)]
    command = [sys.executable, "main.py", "-c", "PP-ShiTuV2_rec", *words]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)


def progress(output: Path) -> int:
    """Lines of metrics.jsonl: whether the run has come further."""
    path = output / "metrics.jsonl"
    return len(path.read_bytes().splitlines()) if path.is_file() else 0


def kill_at_a_random_moment(process: subprocess.Popen[bytes], output: Path, chance: random.Random, early: bool) -> bool:
    """SIGKILL; False if the run came to its end before.

    early: at any moment of the process's life, its start and the taking up of its folder included;
    else once it has come further, in the middle of steps, evaluations and writes.
    """
    before, began = progress(output), time.monotonic()
    while not early and progress(output) == before and process.poll() is None and time.monotonic() - began < 60:
        time.sleep(0.02)
    try:
        process.wait(chance.uniform(0, 8 if early else 0.9))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    return False


@pytest.mark.nightly
def test_thirty_kills_later_the_weights_are_those_of_an_uninterrupted_run(small_faces, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    done = train(small_faces, whole, *OPTIONS)
    assert done.returncode == 0, done.stderr
    chance = random.Random(7)
    for kill in range(KILLS):
        process = start(small_faces, killed)
        killed_it = kill_at_a_random_moment(process, killed, chance, early=kill % 2 == 0)
        assert killed_it, f"done after {kill} kills: make the run longer"
    assert start(small_faces, killed).wait(300) == 0
    for name in ("latest", "best_model", f"epoch_{EPOCHS}"):
        for suffix in ("pdparams", "pdema", "pdopt"):
            assert (whole / name / f"{name}.{suffix}").read_bytes() == (
                killed / name / f"{name}.{suffix}"
            ).read_bytes(), (name, suffix)
        inference = f"{name}/inference/inference.pdiparams"
        assert (whole / inference).read_bytes() == (killed / inference).read_bytes()
    results = [json.loads((folder / "train_result.json").read_text()) for folder in (whole, killed)]
    assert results[0] == results[1] and results[1]["done_flag"] is True
    assert sorted(p.name for p in whole.glob("epoch_*")) == sorted(p.name for p in killed.glob("epoch_*"))
    losses = [rows(folder) for folder in (whole, killed)]
    assert losses[0] == losses[1]


def rows(folder: Path) -> list[tuple[str, int, float]]:
    """What metrics.jsonl says of each step and evaluation, without times."""
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    value = {"train": "loss", "eval": "recall1"}
    return [(r["kind"], r["step"], r[value[r["kind"]]]) for r in found if r["kind"] in value]
