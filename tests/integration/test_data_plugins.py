"""A check, a converter and a reader of another package, as docs/extending_data.md shows them."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import ROOT, run_main

from paddlex_feat.data.readers import find_root, reader_of
from paddlex_feat.data.readers.shitu_rec import SHITU_REC
from paddlex_feat.errors import DatasetError, DependencyError

POINTS = {
    "checks": ("aspect", "ASPECT"),
    "converters": ("ClassFolders", "CLASS_FOLDERS"),
    "readers": ("CsvDataset", "CSV"),
}
CONVERT = "CheckDataset.convert.src_dataset_type"


@pytest.fixture
def install(tmp_path):
    """Install the page's example of a registry as a package; give the folder for PYTHONPATH."""

    def make(kind: str, source: str | None = None) -> str:
        name, value = POINTS[kind]
        page = (ROOT / "docs" / "extending_data.md").read_text(encoding="utf-8")
        examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        folder = tmp_path / "site"
        info = folder / "my_package-1.0.dist-info"
        info.mkdir(parents=True)
        example = next(text for text in examples if f"\n{value} = " in text)
        (folder / "my_package.py").write_text(example if source is None else source)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my_package\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[paddlex_feat.{kind}]\n{name} = my_package:{value}\n")
        return str(folder)

    return make


def check(data: Path, output: Path, *overrides: str, **env: str) -> tuple[int, dict, str]:
    """Exit code, result and log of mode check_dataset."""
    given = (f"Global.dataset_dir={data}", f"Global.output={output}", "Train.batch_size=4", "Train.samples_per_class=2")
    words = [word for setting in (*given, "Train.input_size=16", *overrides) for word in ("-o", setting)]
    done = run_main("-c", "PP-ShiTuV2_rec", *words, **env)
    return done.returncode, json.loads((output / "check_dataset_result.json").read_text()), done.stderr


def class_folders(root: Path) -> Path:
    """Six images each of three classes."""
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        (root / name).mkdir(parents=True)
        for i in range(6):
            coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
            cv2.imwrite(str(root / name / f"{i}.png"), cv2.resize(coarse, (40, 40), interpolation=cv2.INTER_CUBIC))
    return root


def test_a_check_of_another_package(small_faces, tmp_path, install):
    data = tmp_path / "set"
    data.mkdir()
    for name in ("train", "gallery", "query"):
        shutil.copy(small_faces / f"{name}.txt", data)
    (data / "images").symlink_to(small_faces / "images")
    cv2.imwrite(str(data / "long.png"), cv2.resize(np.arange(256, dtype=np.uint8).reshape(16, 16), (20, 300)))
    with (data / "train.txt").open("a") as stream:
        stream.write("long.png 10\n")
    code, result, log = check(data, tmp_path / "out", PYTHONPATH=install("checks"))
    found = [f for f in result["findings"] if f["code"] == "my-long-image"]
    assert code == 0 and result["check_pass"] is True, log
    assert found == [{"code": "my-long-image", "severity": "warning", "where": "train.txt:81",
                      "message": "long.png has 20 x 300 pixels.", "fix": "Crop it."}]  # fmt: skip
    assert "[my-long-image] 1 finding" in log
    code, result, _ = check(data, tmp_path / "strict", "CheckDataset.strict=True", PYTHONPATH=str(tmp_path / "site"))
    assert code == 1 and result["check_pass"] is False


def test_a_converter_of_another_package(tmp_path, install):
    data = class_folders(tmp_path / "set")
    words = ("CheckDataset.convert.enable=True", f"{CONVERT}=ClassFolders")
    code, result, log = check(data, tmp_path / "out", *words, PYTHONPATH=install("converters"))
    assert code == 0, log
    assert [result["attributes"][f"{name}_samples"] for name in ("train", "gallery", "query")] == [9, 5, 4]
    lines = "".join((data / f"{name}.txt").read_text() for name in ("train", "gallery", "query")).splitlines()
    labels = {"cat": 0, "dog": 1, "emu": 2}
    assert sorted(lines) == sorted(f"{name}/{i}.png {label}" for name, label in labels.items() for i in range(6))


@pytest.mark.parametrize("enable", ["True", "False"])
def test_an_unknown_converter_lists_the_known_ones(enable, tmp_path, install):
    data = class_folders(tmp_path / "set")
    words = (f"CheckDataset.convert.enable={enable}", f"{CONVERT}=ClassFolder")
    code, result, log = check(data, tmp_path / "out", *words, PYTHONPATH=install("converters"))
    assert code == 1 and result["err_code"] == "unknown-name"
    assert "Did you mean ClassFolders?" in log and "LabelMe, ClassFolders" in log and f"where: {CONVERT}" in log


def test_a_reader_of_another_package(tmp_path, install):
    data = class_folders(tmp_path / "below" / "set")
    parts = ["train"] * 3 + ["gallery"] * 2 + ["query"]
    rows = [f"{name}/{i}.png,{label},{part}" for label, name in enumerate(("cat", "dog", "emu"))
            for i, part in enumerate(parts)]  # fmt: skip
    rows[7] = "dog/gone.png,1,train"
    (data / "images.csv").write_text("\n".join(["path,label,list", *rows]) + "\n")
    path = install("readers")
    code, result, log = check(data.parent, tmp_path / "out", PYTHONPATH=path)
    assert code == 1 and result["dataset_type"] == "CsvDataset", log
    assert [(f["code"], f["where"]) for f in result["findings"]] == [("image-missing", "images.csv:9")]
    (data / "images.csv").write_text((data / "images.csv").read_text().replace("gone", "1"))
    code, result, log = check(data.parent, tmp_path / "again", PYTHONPATH=path)
    assert code == 0 and result["attributes"]["train_samples"] == 9, log


def test_a_broken_reader_is_of_no_consequence_where_the_built_in_one_is_enough(tmp_path, install, monkeypatch):
    monkeypatch.syspath_prepend(install("readers", "1 / 0"))
    data = tmp_path / "below" / "set"
    data.mkdir(parents=True)
    (data / "train.txt").write_text("a.png 0\n")
    assert find_root(str(data.parent), ("train",)) == data and reader_of(data, ("train",)) is SHITU_REC
    with pytest.raises(DatasetError, match="does not exist"):
        find_root(str(tmp_path / "nowhere"))
    (data / "train.txt").unlink()
    with pytest.raises(DependencyError, match="my_package") as caught:
        find_root(str(data.parent))
    assert (caught.value.code, caught.value.where) == ("plugin-broken", "paddlex_feat.readers")


@pytest.mark.parametrize("kind", POINTS)
def test_a_broken_package_is_named(kind, tmp_path, install):
    data = class_folders(tmp_path / "set")
    words = ("CheckDataset.convert.enable=True", f"{CONVERT}=ClassFolders") if kind == "converters" else ()
    if kind == "checks":
        for name in ("train", "gallery", "query"):
            (data / f"{name}.txt").write_text("cat/0.png 0\ndog/0.png 1\n")
    code, result, log = check(data, tmp_path / "out", *words, PYTHONPATH=install(kind, "1 / 0"))
    assert code == 1 and result["err_code"] == "plugin-broken" and "my_package" in log and "Traceback" not in log
