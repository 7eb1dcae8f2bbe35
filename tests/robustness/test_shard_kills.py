"""SIGKILL at any moment of shards and of their merge: files are whole or absent, and the end is that of one run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import ROOT, run_main

pytest.importorskip("paddle")

from paddlex_feat.errors import ShardError
from paddlex_feat.inference.merge import merge
from paddlex_feat.inference.shards import ShardReader

pytestmark = pytest.mark.slow
KILLS = int(os.environ.get("PADDLEX_FEAT_KILLS", "6"))
PARTS = 3


def words(output: Path, model_dir: Path, photographs: Path, *settings: str) -> list[str]:
    every = ("Global.mode=predict", "Global.device=cpu", f"Global.output={output}", f"Predict.model_dir={model_dir}")
    more = (f"Predict.input={photographs}", "Predict.save_format=npz", *settings)
    return ["-c", "PP-ShiTuV2_rec", *(w for s in (*every, *more) for w in ("-o", s))]


def killed(command: list[str], seconds: float) -> None:
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.fixture
def photographs(faces, tmp_path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for number, file in enumerate(sorted((faces / "images").glob("s*/0[1-9].pgm"))[:120]):
        shutil.copy(file, folder / f"{number:03d}.pgm")
    return folder


def test_killed_shards_and_merges_end_with_the_bytes_of_one_run(photographs, run_folder, tmp_path):
    model_dir, output, chance = run_folder / "best_model/inference", tmp_path / "output", random.Random(KILLS)
    assert run_main(*words(tmp_path / "one", model_dir, photographs)).returncode == 0
    jobs = [
        [sys.executable, "main.py", *words(output, model_dir, photographs, f"Predict.shard={n}/{PARTS}")]
        for n in range(PARTS)
    ]
    started = time.monotonic()
    assert subprocess.run(jobs[0], cwd=ROOT, capture_output=True).returncode == 0
    length = time.monotonic() - started
    for _ in range(KILLS):
        number = chance.randrange(PARTS)
        for file in output.glob(f"features-{number:05d}-*"):
            file.unlink()
        killed(jobs[number], chance.uniform(0.3, 1.1) * length)
        for file in output.glob("features-*"):
            with ShardReader(file) as reader:  # raises for one that is not whole
                assert len(list(reader.rows())) == 40
    for job in jobs:
        assert subprocess.run(job, cwd=ROOT, capture_output=True).returncode == 0
    target = output / "features.npz"
    merging = [sys.executable, "main.py", "merge", str(target), str(output)]
    whole = (tmp_path / "one/features.npz").read_bytes()
    for _ in range(KILLS):
        killed(merging, chance.uniform(0.2, 1.5))
        assert not target.exists() or target.read_bytes() == whole
    assert subprocess.run(merging, cwd=ROOT, capture_output=True).returncode == 0
    assert target.read_bytes() == whole
    assert sorted(f.name for f in output.glob("features-*")) == [f"features-0000{n}-of-00003.npz" for n in range(PARTS)]
    (output / "features-00001-of-00003.npz").unlink()
    with pytest.raises(ShardError, match="such as 1/3"):
        merge(target, sorted(output.glob("features-*")))
    assert target.read_bytes() == whole
