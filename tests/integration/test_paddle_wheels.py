"""Modes where both of Paddle's wheels are installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from support.runs import ROOT

from paddlex_feat.runtime import paddle_build


def add_wheel(folder: Path, name: str, version: str = "3.3.1") -> None:
    """The metadata of an installed wheel."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def start(packages: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """main.py, with `packages` before all others."""
    code = f"import sys; sys.path.insert(0, {str(packages)!r}); from paddlex_feat.cli import main; sys.exit(main())"
    return subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True)


def test_modes_that_need_paddle_stop_at_both_wheels_and_the_others_do_not_look(tmp_path, small_faces):
    for name in paddle_build.WHEELS:
        add_wheel(tmp_path / "packages", name)
    words = ["-c", "PP-ShiTuV2_rec", "-o", f"Global.dataset_dir={small_faces}", "-o", f"Global.output={tmp_path}/out"]
    words += ["-o", "Train.batch_size=16", "-o", "Train.pretrain_weight_path=null"]
    checked = start(tmp_path / "packages", *words)
    assert checked.returncode == 0, checked.stderr
    trained = start(tmp_path / "packages", *words, "-o", "Global.mode=train")
    assert trained.returncode == 1 and "are both installed" in trained.stderr and "Unexpected" not in trained.stderr
    result = json.loads((tmp_path / "out/train_result.json").read_text())
    assert result["done_flag"] is False and "DependencyError" in result["err_type"]
