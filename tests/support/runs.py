"""Runs of the command, and small data sets for them."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

QUICK = (
    "Train.pretrain_weight_path=null",
    "Train.input_size=32",
    "Train.batch_size=16",
    "Train.epochs_iters=3",
    "Train.learning_rate=0.01",
    "Train.warmup_steps=1",
    "Train.augment.pad=2",
    "Global.device=cpu",
)

CLIP = "PP-ShiTuV2_rec_CLIP_vit_base"
# With the configuration CLIP, a network of one block, which trains in a sixth of the time.
TINY = ("Model.depth=1", "Model.width=32", "Model.heads=2", "Model.patch_size=16")


def run_main(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """`python main.py …` as a process of its own."""
    return subprocess.run(
        [sys.executable, str(ROOT / "main.py"), *words],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_here(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    """As `run_main`, in this process: quicker, for tests that are not about the process."""
    from paddlex_feat import cli

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with mock.patch.dict(os.environ, env), _in(cwd), redirect_stdout(out), redirect_stderr(err):
            try:
                code = cli.main(list(words))
            except SystemExit as end:  # of argparse
                code = int(end.code or 0)
        out.seek(0)
        err.seek(0)
        return subprocess.CompletedProcess(words, code, out.read(), err.read())


@contextmanager
def _in(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def train(
    data: Path, output: Path, *overrides: str, config: str = "PP-ShiTuV2_rec", **env: str
) -> subprocess.CompletedProcess[str]:
    """A short training run at 32 px; where Paddle is missing, the test that wants it is skipped."""
    return run_main(*_training(data, output, *overrides, config=config), **env)


def train_here(
    data: Path, output: Path, *overrides: str, config: str = "PP-ShiTuV2_rec", **env: str
) -> subprocess.CompletedProcess[str]:
    """As `train`, in this process."""
    return run_here(*_training(data, output, *overrides, config=config), **env)


def train_tiny(data: Path, output: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    """As `train_here`, of a tiny network, for tests to which the network does not matter."""
    return train_here(data, output, *TINY, *overrides, config=CLIP)


def tiny_weights(data: Path, folder: Path) -> Path:
    """Weights of the tiny network after three epochs, to start from."""
    done = train_tiny(data, folder, "Train.epochs_iters=3")
    assert done.returncode == 0, done.stderr
    return folder / "latest/latest.pdparams"


def _training(data: Path, output: Path, *overrides: str, config: str) -> list[str]:
    pytest.importorskip("paddle")
    settings = ("Global.mode=train", f"Global.dataset_dir={data}", f"Global.output={output}", *QUICK, *overrides)
    return ["-c", config, *(word for setting in settings for word in ("-o", setting))]


def small_set(faces: Path) -> Path:
    """Eight people to train, 12 gallery and query pictures each of others, beside the folder `faces`."""
    folder = faces.parent / "small"
    folder.mkdir()
    (folder / "images").symlink_to(faces / "images")
    for name, people, first, last in (
        ("train", range(1, 9), 1, 10),
        ("gallery", range(21, 27), 1, 2),
        ("query", range(21, 27), 3, 4),
    ):
        lines = [f"images/s{p:02d}/{i:02d}.pgm {p * 10}" for p in people for i in range(first, last + 1)]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder
