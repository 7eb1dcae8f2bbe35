"""The registry of modes, and a mode of another package."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.runs import ROOT, run_main

from paddlex_feat.config.schema import MODE_NAMES, Config
from paddlex_feat.modes import MODES


@pytest.fixture
def installed(tmp_path) -> Path:
    """The package of docs/extending_modes.md: one module and one entry point."""
    page = (ROOT / "docs/extending_modes.md").read_text()
    site = tmp_path / "site"
    info = site / "count_images-1.0.dist-info"
    info.mkdir(parents=True)
    (site / "count_images.py").write_text(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: count_images\nVersion: 1.0\n")
    entry = re.search(r'^(count_images) = "(.*)"$', page, re.MULTILINE)
    (info / "entry_points.txt").write_text(f"[paddlex_feat.modes]\n{entry[1]} = {entry[2]}\n")
    return site


def run(site: Path, *settings: str):
    words = [word for setting in settings for word in ("-o", setting)]
    return run_main("-c", "PP-ShiTuV2_rec", *words, PYTHONPATH=f"{site}:{ROOT}")


def test_a_mode_of_another_package_runs_as_the_built_in_ones(installed, small_faces, tmp_path):
    out = tmp_path / "out"
    wanted = ("Global.mode=count_images", f"Global.dataset_dir={small_faces}", f"Global.output={out}")
    done = run(installed, *wanted, "Global.mode_options.at_least=20")
    assert done.returncode == 0, done.stderr
    result = json.loads((out / "count_images_result.json").read_text())
    assert result == {"done_flag": True, "images": {"train": 80}} and (out / "count_images.log").is_file()
    failed = run(installed, "Global.mode=count_images", "Global.dataset_dir=nowhere", f"Global.output={out}")
    result = json.loads((out / "count_images_result.json").read_text())
    assert failed.returncode == 1 and not result["done_flag"] and "nowhere" in result["err_msg"]


def test_help_lists_all_modes_and_says_which_package_is_broken(installed):
    text = run_main("--help", PYTHONPATH=f"{installed}:{ROOT}").stdout
    for name in MODE_NAMES:
        assert re.search(rf"^  {name} +{re.escape(MODES.get(name).help)}", text, re.MULTILINE)
    assert re.search("^  count_images +count the images of each list$", text, re.MULTILINE)
    (installed / "count_images.py").write_text("1 / 0")
    text = run_main("--help", PYTHONPATH=f"{installed}:{ROOT}").stdout
    assert "the package count_images cannot be imported" in text and "Train.batch_size" in text


def test_a_broken_package_ends_its_mode_with_an_error(installed, tmp_path):
    (installed / "count_images.py").write_text("1 / 0")
    done = run(installed, "Global.mode=count_images", f"Global.output={tmp_path / 'out'}")
    assert done.returncode == 1 and "count_images" in done.stderr and "Traceback" not in done.stderr
    result = json.loads((tmp_path / "out/count_images_result.json").read_text())
    assert result["err_code"] == "plugin-broken"


def test_an_unknown_mode_names_all_modes(installed, tmp_path):
    done = run(installed, "Global.mode=count_image", f"Global.output={tmp_path}")
    assert done.returncode == 1 and "Did you mean count_images?" in done.stderr and not list(tmp_path.glob("*.json"))


def test_the_schema_names_the_built_in_modes():
    assert [name for name in MODES.names() if name in MODE_NAMES] == list(MODE_NAMES)
    for name in MODE_NAMES:
        spec = MODES.get(name)
        assert callable(spec.load()) and spec.section in Config.model_fields and spec.memory_fix.startswith("Lower ")


def test_options_of_a_built_in_mode_are_an_error(tmp_path):
    done = run(tmp_path, "Global.mode_options.at_least=1", f"Global.output={tmp_path / 'out'}")
    assert done.returncode == 1 and "mode check_dataset takes none" in done.stderr
