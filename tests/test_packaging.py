"""The wheel, built and installed as a user would, outside the checkout."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT

pytestmark = pytest.mark.slow  # pip builds in an environment of its own


def test_the_wheel_holds_the_shipped_configurations_and_the_command(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "-q", "--no-deps", "-w", tmp_path / "dist", ROOT], check=True)
    wheel = next((tmp_path / "dist").glob("paddlex_feat-*.whl"))
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "-q", "--no-deps", "-t", site, wheel], check=True)

    def run(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env={"PYTHONPATH": str(site)}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    listing = run("-c", "from paddlex_feat.config.load import shipped; print(*shipped().values(), sep='\\n')")
    files = listing.splitlines()
    assert len(files) == len(list((ROOT / "configs/modules/image_feature").iterdir()))
    assert all(f.startswith(str(site)) for f in files)
    assert "Train.batch_size" in run(str(site / "bin" / "paddlex-feat"), "--help")
