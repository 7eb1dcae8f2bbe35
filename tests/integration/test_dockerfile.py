"""The Dockerfile: without a complaint of its linter, and built where Docker is there."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import ROOT


def test_its_linter_has_nothing_to_say():
    linter = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if linter is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_its_extras_and_command_exist():
    text = (ROOT / "Dockerfile").read_text()
    setup = (ROOT / "setup.cfg").read_text()
    for extra in text.partition('".[')[2].partition("]")[0].split(","):
        assert f"\n{extra} =" in setup
    assert "paddlex-feat = " in setup and (ROOT / "constraints.txt").is_file()


@pytest.mark.nightly
def test_the_image_is_built_and_answers():
    if shutil.which("docker") is None:
        pytest.skip("Docker is not installed")
    subprocess.run(["docker", "build", "-t", "paddlex_feat_test", "."], cwd=ROOT, check=True)
    done = subprocess.run(
        ["docker", "run", "--rm", "paddlex_feat_test", "-o", "Global.mode=index", "-o", "Index.action=stats"],
        capture_output=True,
        text=True,
    )
    assert "The gallery does not exist" in done.stderr
