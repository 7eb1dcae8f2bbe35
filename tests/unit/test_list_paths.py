"""Lists in the encodings that people save, names that are not UTF-8, and images under nearly the right path."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from paddlex_feat.checks.context import CheckSettings
from paddlex_feat.checks.runner import check
from paddlex_feat.config.load import load
from paddlex_feat.data.converters import labelme
from paddlex_feat.data.lists import transaction
from paddlex_feat.data.readers import LISTS, find_root
from paddlex_feat.data.readers.shitu_rec import read_list
from paddlex_feat.errors import DatasetError
from paddlex_feat.modes import check_dataset
from paddlex_feat.modes.data import require_images
from paddlex_feat.runtime.distributed import ProcessGroup

SETTINGS = CheckSettings(batch_size=4, samples_per_class=2, num_classes=None, workers=1, input_size=16)


@pytest.fixture
def data(tmp_path, monkeypatch) -> Path:
    """A sound set with images/花N.png."""
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    (folder / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for number in range(8):
        coarse = rng.integers(0, 256, (7, 7, 3), dtype=np.uint8)
        content = cv2.imencode(".png", cv2.resize(coarse, (32, 32), interpolation=cv2.INTER_CUBIC))[1].tobytes()
        (folder / f"images/花{number}.png").write_bytes(content)
    for name, numbers in (("train", range(4)), ("gallery", (4, 5)), ("query", (6, 7))):
        lines = [f"images/花{n}.png {n // 2 if name == 'train' else n % 2}" for n in numbers]
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def recode(data: Path, encoding: str) -> None:
    for name in LISTS:
        text = (data / f"{name}.txt").read_text(encoding="utf-8")
        (data / f"{name}.txt").write_bytes(text.replace("\n", "\r\n").encode(encoding))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_lists_in_utf_16_are_read_with_a_warning(data, encoding):
    recode(data, encoding)
    found = check(data, SETTINGS)
    assert found[0].lists["train"].paths == [f"images/花{n}.png" for n in range(4)]
    assert [(f.code, f.severity, f.where) for f in found[1]] == [("list-utf16", "warning", f"{n}.txt") for n in LISTS]
    assert "UTF-8" in found[1][0].fix


def test_a_list_of_ascii_in_utf_16_without_a_mark(tmp_path):
    (tmp_path / "train.txt").write_bytes("a b.jpg 0\n".encode("utf-16-le"))
    records, findings = read_list(tmp_path, "train")
    assert records.paths == ["a b.jpg"] and [f.code for f in findings] == ["list-utf16"]


def test_half_a_character_of_utf_16_is_an_error_about_encodings(tmp_path):
    (tmp_path / "train.txt").write_bytes("a.jpg 0\n".encode("utf-16") + b"x")
    finding = read_list(tmp_path, "train")[1][0]
    assert finding.code == "list-encoding" and "UTF-8" in finding.fix and "label" not in finding.fix


def test_class_names_in_utf_16(tmp_path):
    (tmp_path / "label.txt").write_bytes("猫\n狗\n".encode("utf-16"))
    found = labelme.Converted()
    assert labelme._read_names(tmp_path / "label.txt", found) == ["猫", "狗"]
    assert [f.code for f in found.findings] == ["list-utf16"]


@pytest.mark.parametrize("encoding", ["gbk", "shift_jis"])
def test_names_that_are_not_utf_8_are_used_byte_for_byte(data, encoding, tmp_path):
    recode(data, encoding)
    for image in (data / "images").iterdir():
        image.rename(os.fsdecode(str(image).encode(encoding)))
    found = check(data, SETTINGS)[1]
    assert {f.code for f in found} == {"list-bytes"} and len(found) == 3
    keys = {"enable": True, "train_percent": 50, "gallery_percent": 25, "query_percent": 25}
    pairs = [("Global.dataset_dir", str(data)), ("Train.batch_size", 4), ("Train.input_size", 16)]
    pairs += [(f"CheckDataset.split.{key}", value) for key, value in keys.items()]
    config = load("PP-ShiTuV2_rec", pairs)[0]
    result = check_dataset.run(config, tmp_path / "out", ProcessGroup())
    assert result["check_pass"] and "花0.png".encode(encoding) in b"".join(
        (data / f"{n}.txt").read_bytes() for n in LISTS
    )


def test_a_gbk_list_of_names_in_utf_8_is_read_as_before(data):
    recode(data, "gbk")
    found = check(data, SETTINGS)
    assert found[0].lists["train"].paths[0] == "images/花0.png" and {f.code for f in found[1]} == {"list-gbk"}


def test_lists_that_are_replaced_keep_such_names(tmp_path):
    transaction.replace_lists(tmp_path, {"train": "caf\udce9.jpg 0\n"})
    assert (tmp_path / "train.txt").read_bytes() == b"caf\xe9.jpg 0\n"


# Images and folders under nearly the right path


def test_a_missing_image_is_explained_on_its_line(data):
    os.rename(data / "images/花0.png", data / "images/Photo 0.PNG")  # noqa: PTH104
    (data / "train.txt").write_text(
        "images/photo 0.png 0\nimages/photo%200.png 0\nimages\\Photo 0.PNG 1\nset/images/Photo 0.PNG 1\nnowhere.png 1\n"
    )
    found = [f for f in check(data, SETTINGS)[1] if f.code == "image-missing"]
    meant = [f.message.partition("Did you mean ")[2] for f in found]
    assert [f.where for f in found] == [f"train.txt:{n}" for n in range(1, 6)]
    assert all(m.startswith("images/Photo 0.PNG (") for m in meant[:4]) and not meant[4]
    records, _ = read_list(data, "train")
    with pytest.raises(DatasetError) as caught:
        require_images(records, [0, 4])
    assert "train.txt:1: Did you mean images/Photo 0.PNG (upper and lower case differ)?" in caught.value.what
    assert caught.value.where == "train.txt:1 (images/photo 0.png), train.txt:5 (nowhere.png)"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("set/train.txt", "set/train.txt is a file; give the folder that holds it, set."),
        ("set.zip", "set.zip is an archive; unpack it first and give the folder."),
        ("SET", "Did you mean set (upper and lower case differ)?"),
        ("set/set", "Did you mean set (set is there once)?"),
        ("'set'", "Did you mean set (without what surrounds the path)?"),
        ("other", "There is other.tar.gz; unpack it first."),
        ("gone/set", "There is no folder gone in "),
        ("set/images", "There are lists one folder up: give set."),
    ],
)
def test_a_data_set_folder_that_is_something_else(data, given, message, monkeypatch):
    monkeypatch.chdir(data.parent)
    shutil.make_archive("set", "zip", "set")
    Path("other.tar.gz").touch()
    with pytest.raises(DatasetError) as caught:
        find_root(given)
    assert message in caught.value.what and given in caught.value.where


def test_lists_under_nearly_their_names(data):
    os.rename(data / "query.txt", data / "Query.txt")  # noqa: PTH104
    missing = [f for f in check(data, SETTINGS)[1] if f.code == "list-missing"]
    assert "Did you mean" in missing[0].message and "Query.txt (upper and lower case differ)?" in missing[0].message
    for name in ("train", "gallery"):
        os.rename(data / f"{name}.txt", data / f"{name}.TXT")  # noqa: PTH104
    with pytest.raises(DatasetError, match=r"No folder with .*Did you mean .*train\.TXT"):
        find_root(str(data))
