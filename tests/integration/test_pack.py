"""A data set as tar shards: what they hold, that they are whole, and that they train as the lists do."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest
from support.runs import ROOT

from paddlex_feat.data import pack as module
from paddlex_feat.data.pack import main, pack
from paddlex_feat.data.readers import require_lists
from paddlex_feat.errors import TEMPORARY, DatasetError, OutputError


def content(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def samples(folder: Path, name: str) -> list[tuple[bytes, str]]:
    """(bytes of the image, class) of a list, in its order."""
    found = []
    for shard in sorted(folder.glob(f"{name}-*.tar")):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            for image, label in zip(members[::2], members[1::2], strict=True):
                assert image.name.partition(".")[0] == label.name.removesuffix(".cls") and image.mtime == 0
                found.append((tar.extractfile(image).read(), tar.extractfile(label).read().decode()))
    return found


def test_shards_hold_the_images_and_classes_of_the_lists_in_their_order(small_faces, tmp_path):
    counts = pack(small_faces, tmp_path / "shards", images=30)
    assert counts == {"train": (80, 3), "gallery": (12, 1), "query": (12, 1)}
    lists = require_lists(str(small_faces), ("train", "gallery", "query"))
    for name, records in lists.items():
        wanted = [(Path(f).read_bytes(), str(n)) for f, n in zip(records.files(), records.labels, strict=True)]
        assert samples(tmp_path / "shards", name) == wanted
    read = require_lists(str(tmp_path / "shards"), ("train", "gallery", "query"))
    for name, records in lists.items():
        assert list(map(read[name].name_of, read[name].labels)) == list(map(str, records.labels))


def test_a_seed_shuffles_and_the_same_one_gives_the_same_bytes(small_faces, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2), ("d", None)):
        pack(small_faces, tmp_path / name, images=30, seed=seed)
    a, b, c, d = (content(tmp_path / name) for name in "abcd")
    assert a == b and len({x["train-00000.tar"] for x in (a, c, d)}) == 3
    assert sorted(samples(tmp_path / "a", "train")) == sorted(samples(tmp_path / "d", "train"))


def test_what_is_there_is_kept_and_other_images_are_refused(small_faces, tmp_path):
    target = tmp_path / "shards"
    pack(small_faces, target, images=30)
    whole = content(target)
    (target / "train-00001.tar").unlink()
    times = {f.name: f.stat().st_mtime_ns for f in target.glob("*.tar")}
    assert main([str(small_faces), str(target), "--images", "30"]) == 0
    assert content(target) == whole
    assert {f.name: f.stat().st_mtime_ns for f in target.glob("*.tar") if f.name in times} == times
    for words in (("--images", "29"), ("--images", "30", "--seed", "3")):
        with pytest.raises(OutputError, match="other images"):
            main([str(small_faces), str(target), *words])
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match="something else"):
        pack(small_faces, tmp_path / "mine")
    assert content(target) == whole


def test_an_image_that_cannot_be_read_is_named_before_anything_is_written(small_faces, tmp_path):
    data = shutil.copytree(small_faces, tmp_path / "data")
    (data / "images/s03/05.pgm").unlink()
    with pytest.raises(DatasetError, match="cannot be read") as caught:
        pack(data, tmp_path / "shards", images=10)
    assert "s03/05.pgm" in str(caught.value) and not (tmp_path / "shards").exists()


def test_images_that_were_changed_meanwhile_are_other_images(small_faces, tmp_path):
    data = shutil.copytree(small_faces, tmp_path / "data")
    pack(data, tmp_path / "shards", images=10)
    (tmp_path / "shards/train-00003.tar").unlink()
    with (data / "images/s03/05.pgm").open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(OutputError, match="other images"):
        pack(data, tmp_path / "shards", images=10)


def test_a_data_set_of_which_a_shard_is_missing_is_not_whole(small_faces, tmp_path):
    pack(small_faces, tmp_path / "shards", images=10)
    for name in ("train-00003.tar", "query-00001.tar"):
        (tmp_path / "shards" / name).unlink()
    with pytest.raises(DatasetError) as caught:
        require_lists(str(tmp_path / "shards"), ("train", "gallery", "query"))
    assert "train-00003.tar is not there" in str(caught.value) and "query-00001.tar" in str(caught.value)


def test_images_that_look_for_each_other_do_so_from_shards(faces, tmp_path):
    """train and test folders: each test image looks for the others of its class."""
    for part, people in (("train", (1, 2)), ("test", (3, 4))):
        for person in people:
            shutil.copytree(faces / f"images/s{person:02d}", tmp_path / "data" / part / f"s{person:02d}")
    pack(tmp_path / "data", tmp_path / "shards")
    assert sorted(f.name for f in (tmp_path / "shards").glob("*.tar")) == ["test-00000.tar", "train-00000.tar"]
    for folder in ("data", "shards"):
        lists = require_lists(str(tmp_path / folder), ("train", "gallery", "query"))
        assert lists["query"].leave_one_out and lists["query"].files() == lists["gallery"].files()
        assert len(lists["query"]) == len(lists["train"]) == 20


def test_what_a_shard_does_not_tell_is_refused(small_faces, tmp_path):
    data = shutil.copytree(small_faces, tmp_path / "data")
    (data / "query.txt").write_text((data / "gallery.txt").read_text())
    with pytest.raises(DatasetError, match="gallery and query at once"):
        pack(data, tmp_path / "shards")
    with pytest.raises(OutputError, match="within the data set"):
        pack(small_faces, small_faces / "shards")
    market = tmp_path / "market"
    for folder, names in (
        ("bounding_box_train", ("0001_c1s1_000001_00.jpg",)),
        ("bounding_box_test", ("0002_c1s1_000001_00.jpg",)),
        ("query", ("0002_c2s1_000001_00.jpg",)),
    ):
        for name in names:
            (market / folder).mkdir(parents=True, exist_ok=True)
            shutil.copy(small_faces / "images/s01/01.pgm", market / folder / name)
    with pytest.raises(DatasetError, match="cameras"):
        pack(market, tmp_path / "shards")
    assert not (tmp_path / "shards").exists()


def test_classes_by_name_and_names_that_no_key_has(tmp_path):
    for name in ("äpfel.roh", "b c"):
        for number in range(3):
            file = tmp_path / "data" / name / f"{name}.{number}.PNG"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(f"{name} {number}".encode())
    pack(tmp_path / "data", tmp_path / "shards")
    found = samples(tmp_path / "shards", "train")
    assert sorted(found) == sorted((f"{n} {i}".encode(), n) for n in ("äpfel.roh", "b c") for i in range(3))


def test_boxes_are_refused(tmp_path, monkeypatch):
    from paddlex_feat.data.images.source import Box, ImageSource
    from paddlex_feat.data.lists.image_list import ImageList

    records = ImageList("train", tmp_path, [ImageSource("a", "a.jpg", box=Box(0, 0, 2, 2))], [0])
    with pytest.raises(DatasetError, match="boxes"):
        module._members(records, None)


@pytest.mark.parametrize("label", [" a", "a\n", "x" * 101, "a\x07b"])
def test_classes_that_a_shard_would_not_give_back_are_refused(tmp_path, label):
    from paddlex_feat.data.lists.image_list import ImageList

    records = ImageList("train", tmp_path, ["a.jpg"], [0], names={0: label})
    with pytest.raises(DatasetError, match="would be read from a shard"):
        module._members(records, None)


def test_an_image_within_a_larger_file_is_cut_out(small_faces, tmp_path):
    pack(small_faces, tmp_path / "one", images=7)
    pack(tmp_path / "one", tmp_path / "two", images=100)
    for name in ("train", "gallery", "query"):
        assert samples(tmp_path / "one", name) == samples(tmp_path / "two", name)


@pytest.mark.slow
@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.nightly)])
def test_killed_at_any_moment_each_shard_is_whole_or_absent(small_faces, tmp_path, kills):
    pack(small_faces, tmp_path / "sound", images=5)
    sound, target, chance = content(tmp_path / "sound"), tmp_path / "shards", random.Random(kills)
    command = [sys.executable, "main.py", "pack", str(small_faces), str(target), "--images", "5"]
    for _ in range(kills):
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(chance.uniform(0.3, 1.2))
        process.send_signal(signal.SIGKILL)
        process.wait()
        if target.is_dir():
            there = {name: data for name, data in content(target).items() if not name.startswith(TEMPORARY)}
            assert there.items() <= sound.items()
            for name in random.Random(0).sample(sorted(there), len(there) // 2):
                if name.endswith(".tar"):
                    (target / name).unlink()
    assert subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL).returncode == 0
    assert content(target) == sound
