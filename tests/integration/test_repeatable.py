"""Jobs that repeat bit for bit: two checkouts, other numbers of workers, and from a run's own folder."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import QUICK, ROOT

from paddlex_feat.provenance.verify import SAME

pytest.importorskip("paddle")
pytestmark = [pytest.mark.slow, pytest.mark.nightly]

COMPARED = (
    "best_model/best_model.pdparams",
    "best_model/inference/inference.pdiparams",
    "inference.pdiparams",
    "train_result.json",
    "evaluate_result.json",
    "export_result.json",
    "check_dataset_result.json",
)


def main(checkout: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`python main.py …` of a checkout, in its folder."""
    # Paddle's threads decide the order of its sums: the one thing that two machines must have alike.
    env = {**os.environ, "PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "2"}
    return subprocess.run([sys.executable, "main.py", *words], cwd=checkout, env=env, capture_output=True, text=True)


def jobs(checkout: Path, *train: str, config: str = "PP-ShiTuV2_rec", output: str = "output") -> None:
    """check_dataset, train, evaluate and export with paths relative to the checkout, as CI runs them."""
    best = f"{output}/best_model/best_model.pdparams"
    for mode, settings in (
        ("check_dataset", train),
        ("train", train),
        ("evaluate", (*train, f"Evaluate.weight_path={best}")),
        ("export", (*train, f"Export.weight_path={best}")),
    ):
        chosen = (f"Global.mode={mode}", f"Global.output={output}", *settings)
        done = main(checkout, "-c", config, *(w for s in chosen for w in ("-o", s)))
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def checkouts(small_faces, tmp_path_factory) -> list[Path]:
    """Two checkouts, the data set in each, after the same jobs with other numbers of workers."""
    made = []
    for name, workers in (("one", 1), ("another_and_longer", 3)):
        folder = tmp_path_factory.mktemp(name)
        shutil.copytree(ROOT / "paddlex_feat", folder / "paddlex_feat", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(ROOT / "configs", folder / "configs")
        shutil.copy(ROOT / "main.py", folder)
        shutil.copytree(small_faces, folder / "dataset", symlinks=False)
        jobs(folder, *QUICK, "Global.dataset_dir=dataset", f"Train.num_workers={workers}")
        made.append(folder)
    return made


def test_two_checkouts_and_other_workers_give_the_same_bytes(checkouts):
    one, other = checkouts
    for name in COMPARED:
        assert (one / "output" / name).read_bytes() == (other / "output" / name).read_bytes(), name
    done = main(one, "verify", "output", str(other / "output"))
    assert done.returncode == 0 and done.stdout.endswith(f"{SAME}\n"), done.stdout
    assert "Train.num_workers: 1 | 3" in done.stdout


def test_a_run_repeats_from_its_own_folder(checkouts):
    """`python main.py -c RUN/config.yaml`, into another output."""
    folder = checkouts[0]
    (folder / "output").rename(folder / "first")
    jobs(folder, config="first/config.yaml")
    for name in COMPARED:
        assert (folder / "output" / name).read_bytes() == (folder / "first" / name).read_bytes(), name
    done = main(folder, "verify", "output", "first")
    assert (done.returncode, done.stdout) == (0, f"{SAME}\n")
    done = main(folder, "verify", "output")
    assert (done.returncode, done.stdout) == (0, f"{SAME}\n")


def test_another_seed_is_another_run(checkouts):
    folder = checkouts[1]
    (folder / "output").rename(folder / "first")
    jobs(folder, "Train.seed=1", config="first/config.yaml")
    done = main(folder, "verify", "output", "first")
    assert done.returncode == 1 and "Train.seed: 1 | 42" in done.stdout
    assert "best_model/best_model.pdparams: " in done.stdout and "data set" not in done.stdout
