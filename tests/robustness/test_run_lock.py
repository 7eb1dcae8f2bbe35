"""The lock that keeps a second run out of a folder."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support.runs import ROOT

from paddlex_feat.errors import OutputError
from paddlex_feat.fileio import locks
from paddlex_feat.fileio.locks import locked


def test_a_second_run_is_kept_out_of_the_folder_and_a_dead_one_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.2)
    code = (
        "import subprocess, sys, time; from pathlib import Path; from paddlex_feat.fileio.locks import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        " subprocess.Popen(['sleep', '5'], stdout=subprocess.DEVNULL); print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, tmp_path / "train.log"], stdout=subprocess.PIPE, cwd=ROOT)
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(OutputError, match="Another run"), locked(tmp_path / "train.log"):
        pass
    with locked(tmp_path / "train.log", shared=True):  # one of several processes of that run
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path / "train.log"):  # though the program that it had started lives on
        assert [p.name for p in tmp_path.iterdir()] == ["train.log"]
