"""Jobs that each do a shard of predict, and the merge of what they leave."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.runs import ROOT, run_here, run_main

pytest.importorskip("paddle")
COUNT = 3


def words(output: Path, model_dir: Path, given: str, *settings: str) -> list[str]:
    every = ("Global.mode=predict", "Global.device=cpu", f"Global.output={output}", f"Predict.model_dir={model_dir}")
    return ["-c", "PP-ShiTuV2_rec", *(w for s in (*every, f"Predict.input={given}", *settings) for w in ("-o", s))]


@pytest.fixture(scope="module")
def photographs(faces, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for number, file in enumerate(sorted((faces / "images").glob("s*/01.pgm"))[:20]):
        shutil.copy(file, folder / f"{number:03d}.pgm")
    (folder / "007b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return folder


def result(output: Path, number: int) -> dict:
    return json.loads((output / f"predict_{number:05d}-of-{COUNT:05d}_result.json").read_text())


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_shards_that_run_at_once_merge_to_the_bytes_of_one_run(photographs, run_folder, tmp_path, form):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    model_dir, saved = run_folder / "best_model/inference", f"Predict.save_format={form}"
    assert run_here(*words(tmp_path / "one", model_dir, str(photographs), saved)).returncode == 1
    jobs = [
        words(tmp_path, model_dir, str(photographs), saved, f"Predict.shard={n}/{COUNT}") for n in range(COUNT)
    ]  # fmt: skip
    with ThreadPoolExecutor(COUNT) as pool:
        codes = [done.returncode for done in pool.map(lambda job: run_main(*job), jobs)]
    assert sum(codes) == 1  # the shard with the damaged picture
    results = [result(tmp_path, number) for number in range(COUNT)]
    assert [r["images"] + len(r["failed"]) for r in results] == [7, 7, 7]
    assert sorted(f.name for f in tmp_path.glob("features-*")) == [r["results"][0] for r in results]
    assert all((tmp_path / f"predict_{n:05d}-of-{COUNT:05d}.log").is_file() for n in range(COUNT))
    merged = subprocess.run(
        [sys.executable, "main.py", "merge", str(tmp_path / f"features.{form}"), str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert merged.returncode == 0 and "20 features of 21 images" in merged.stdout, merged.stderr
    assert "007b.png" in merged.stderr
    assert (tmp_path / f"features.{form}").read_bytes() == (tmp_path / f"one/features.{form}").read_bytes()


def test_a_job_that_is_repeated_computes_nothing_and_one_of_another_input_is_refused(photographs, run_folder, tmp_path):
    model_dir = run_folder / "best_model/inference"
    shard = ("Predict.save_format=npz", f"Predict.shard=0/{COUNT}")
    job = words(tmp_path, model_dir, str(photographs), *shard)
    assert run_here(*job).returncode == 0 and result(tmp_path, 0)["skipped"] is False
    file = tmp_path / result(tmp_path, 0)["results"][0]
    before = file.read_bytes(), file.stat().st_mtime_ns
    assert run_here(*job).returncode == 0 and result(tmp_path, 0)["skipped"] is True
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before
    fewer = words(tmp_path, model_dir, f"{photographs}/00*.pgm", *shard)
    done = run_here(*fewer)
    assert done.returncode == 1 and "inputs differ: 21 and 10" in done.stderr and file.name in done.stderr
    mirrored = words(tmp_path, model_dir, str(photographs), *shard, "Predict.mirror=True")
    assert "pre-processing differ" in run_here(*mirrored).stderr
    file.write_bytes(before[0][:-300])
    assert "cannot be used" in run_here(*job).stderr
    assert result(tmp_path, 0)["err_code"] == "shard-unusable" and len(file.read_bytes()) == len(before[0]) - 300


def test_a_form_that_has_no_shards_is_refused(photographs, run_folder, tmp_path):
    done = run_here(*words(tmp_path, run_folder / "best_model/inference", str(photographs), "Predict.shard=0/2"))
    assert done.returncode == 1 and "Predict.save_format" in done.stderr


@pytest.mark.slow
def test_a_shard_on_several_devices_is_the_same(photographs, run_folder, tmp_path):
    files = []
    for device in ("cpu", "cpu:0,1"):
        job = words(
            tmp_path / device, run_folder / "best_model/inference", str(photographs), "Predict.save_format=npz",
            f"Predict.shard=1/{COUNT}", f"Global.device={device}",
        )  # fmt: skip
        first, again = run_main(*job), run_main(*job)
        assert first.returncode == again.returncode, first.stderr + again.stderr
        assert result(tmp_path / device, 1)["skipped"] is True
        files.append((tmp_path / device / "features-00001-of-00003.npz").read_bytes())
    assert files[0] == files[1]
