"""A check in shards: jobs that open images, and one that finds what one run would have found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import run_here

from paddlex_feat.fileio.npz import NpzReader

COUNT = 3


@pytest.fixture(scope="module")
def data(small_faces, tmp_path_factory) -> Path:
    """A data set with copies, a copy in another list, a damaged image, a missing one and a blank one."""
    folder = tmp_path_factory.mktemp("set")
    shutil.copytree(small_faces, folder, dirs_exist_ok=True)
    train, query = folder / "train.txt", folder / "query.txt"
    first, second = (line.split()[0] for line in train.read_text().splitlines()[:2])
    asked = query.read_text().split()[0]
    for name, source in (("copy.pgm", first), ("leak.pgm", asked)):
        shutil.copy(folder / source, folder / name)
    (folder / "cut.png").write_bytes(cv2.imencode(".png", np.zeros((40, 40), np.uint8))[1].tobytes()[:60])
    cv2.imwrite(str(folder / "blank.png"), np.full((40, 40), 9, np.uint8))
    more = ["copy.pgm 10", "leak.pgm 10", "cut.png 20", "blank.png 20", "missing.png 20", f"{second} 30"]
    train.write_text(train.read_text() + "\n".join(more) + "\n")
    return folder


def run(data: Path, output: Path, *settings: str, cache: Path) -> dict:
    every = (
        "Global.mode=check_dataset",
        f"Global.dataset_dir={data}",
        f"Global.output={output}",
        "Train.batch_size=16",
    )
    words = [w for s in (*every, *settings) for w in ("-o", s)]
    done = run_here("-c", "PP-ShiTuV2_rec", *words, PADDLE_PDX_CACHE_HOME=str(cache))
    names = [s.partition("=")[2] for s in settings if s.startswith("CheckDataset.shard=")]
    name = "".join(f"_{int(n.split('/')[0]):05d}-of-{COUNT:05d}" for n in names)
    return {
        "code": done.returncode,
        "said": done.stderr,
        **json.loads((output / f"check_dataset{name}_result.json").read_text()),
    }


@pytest.fixture(scope="module")
def shards(data, tmp_path_factory) -> Path:
    """Global.output of three jobs, each on a machine of its own: they share no cache."""
    output = tmp_path_factory.mktemp("shards")
    for number in reversed(range(COUNT)):
        result = run(data, output, f"CheckDataset.shard={number}/{COUNT}", cache=output / f"cache{number}")
        assert result["code"] == 0 and result["skipped"] is False and result["images"] > 30
    return output


def test_the_last_job_finds_what_one_run_finds(data, shards, tmp_path):
    one = run(data, tmp_path / "one", cache=tmp_path / "cache of one")
    last = run(data, tmp_path / "last", f"CheckDataset.inspected={shards}", cache=tmp_path / "cache of the last")
    codes = {finding["code"] for finding in one["findings"]}
    assert {"image-missing", "image-truncated", "image-blank"} & codes and one["code"] == last["code"] == 1
    assert any("leak" in json.dumps(f) for f in one["findings"]) and any(
        "copy" in json.dumps(f) for f in one["findings"]
    )
    assert {k: v for k, v in last.items() if k != "said"} == {k: v for k, v in one.items() if k != "said"}
    assert not list((tmp_path / "cache of the last").rglob("*.sqlite"))  # nothing was opened


def test_a_repeated_job_opens_nothing_and_other_images_are_refused(data, shards, tmp_path):
    again = run(data, shards, f"CheckDataset.shard=1/{COUNT}", cache=tmp_path / "cache")
    assert again["code"] == 0 and again["skipped"] is True and not (tmp_path / "cache").exists()
    changed = shutil.copytree(data, tmp_path / "changed")
    (changed / "query.txt").write_text("".join((data / "query.txt").read_text().splitlines(True)[:-1]))
    refused = run(changed, tmp_path / "out", f"CheckDataset.inspected={shards}", cache=tmp_path / "cache")
    assert (
        refused["code"] == 1 and refused["err_code"] == "shard-mixed" and "inspection-00000-of-00003" in refused["said"]
    )


CHANGES = {
    "missing": ("shard-missing", lambda one, folder: one.unlink()),
    "of four": ("shard-missing", lambda one, folder: shutil.copy(one, folder / "inspection-00001-of-00004.npz")),
    "twice": ("shard-unusable", lambda one, folder: shutil.copy(one, folder / "inspection-00002-of-00003.npz")),
    "cut": ("shard-unusable", lambda one, folder: one.write_bytes(one.read_bytes()[:-9])),
    "in two places": ("shard-missing", lambda one, folder: shutil.copy(one, folder.parent / one.name)),
    "none": ("shard-missing", lambda one, folder: shutil.rmtree(folder)),
}


@pytest.mark.parametrize("name", CHANGES)
def test_shards_that_are_missing_damaged_or_of_another_number_are_refused(data, shards, tmp_path, name):
    code, change = CHANGES[name]
    folder = shutil.copytree(shards, tmp_path / "shards") / "check_dataset"
    change(folder / "inspection-00001-of-00003.npz", folder)
    refused = run(data, tmp_path / "out", f"CheckDataset.inspected={folder.parent}", cache=tmp_path / "cache")
    assert (refused["code"], refused["err_code"]) == (1, code), refused["said"]


def test_every_image_is_in_one_shard(shards):
    counts = []
    for file in (shards / "check_dataset").glob("inspection-*"):
        reader = NpzReader(file)
        counts.append(len(reader.texts("info")))
        reader.close()
    assert len(counts) == COUNT and max(counts) - min(counts) <= 1
