"""The wheel, built and installed as a user would, outside the checkout and without Paddle."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from support.runs import ROOT

pytestmark = pytest.mark.slow  # pip builds and installs


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """A new environment that holds the package's wheel and what it requires, no extra."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = ["-m", "pip", "--disable-pip-version-check"]
    with FileLock(tmp_path_factory.getbasetemp().parent / "wheel.lock"):  # workers build in one folder
        subprocess.run([sys.executable, *pip, "wheel", "-q", "--no-deps", "-w", folder / "dist", ROOT], check=True)
    subprocess.run([sys.executable, "-m", "venv", folder / "env"], check=True)
    wheel = next((folder / "dist").glob("paddlex_feat-*.whl"))
    subprocess.run([folder / "env/bin/python", *pip, "install", "-q", wheel], check=True)
    return folder / "env"


def run(environment: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [environment / "bin" / words[0], *words[1:]], cwd=environment.parent, capture_output=True, text=True
    )


def test_the_wheel_holds_the_shipped_configurations(environment):
    code = "from paddlex_feat.config.load import shipped; print(*shipped().values(), sep='\\n')"
    files = run(environment, "python", "-c", code).stdout.splitlines()
    assert len(files) == len(list((ROOT / "configs/modules/image_feature").iterdir()))
    assert all(f.startswith(str(environment)) for f in files)


def test_the_wheel_says_that_it_has_types(environment):
    code = "import paddlex_feat, pathlib; print(pathlib.Path(paddlex_feat.__file__).with_name('py.typed').is_file())"
    assert run(environment, "python", "-c", code).stdout.strip() == "True"


def test_the_console_script_checks_a_data_set_without_paddle(environment, small_faces):
    assert run(environment, "python", "-c", "import paddle").returncode == 1
    assert "Train.batch_size" in run(environment, "paddlex-feat", "--help").stdout
    words = ("-o", f"Global.dataset_dir={small_faces}", "-o", "Train.batch_size=16")
    done = run(environment, "paddlex-feat", "-c", "PP-ShiTuV2_rec", *words)
    assert done.returncode == 0 and "Check dataset passed !" in done.stderr, done.stderr
    result = json.loads((environment.parent / "output/check_dataset_result.json").read_text())
    assert result["check_pass"] is True


def test_what_needs_paddle_says_what_to_install(environment, small_faces):
    words = ("-o", f"Global.dataset_dir={small_faces}", "-o", "Train.batch_size=16", "-o", "Global.mode=train")
    done = run(environment, "paddlex-feat", "-c", "PP-ShiTuV2_rec", *words)
    assert done.returncode == 1 and "PaddlePaddle is not installed" in done.stderr and "Traceback" not in done.stderr
