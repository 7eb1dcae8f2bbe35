"""One data set in five layouts: the same batches for the same seed; and orders that read files forwards."""

from __future__ import annotations

import hashlib
import shutil
import tarfile
from itertools import chain
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import run_here

pytest.importorskip("pyarrow")

from paddlex_feat import create_model
from paddlex_feat.config import load
from paddlex_feat.data.images.source import ImageSource
from paddlex_feat.data.pack import pack
from paddlex_feat.data.readers import require_lists
from paddlex_feat.data.samplers import ShuffleSampler, WindowSampler, blocks_of
from paddlex_feat.errors import DatasetError
from paddlex_feat.modes.train_data import read_data
from paddlex_feat.runtime.distributed import ProcessGroup

PARTS = {"train": range(1, 9), "gallery": range(21, 27), "query": range(21, 27)}


@pytest.fixture(scope="module")
def layouts(small_faces, tmp_path_factory) -> dict[str, Path]:
    """The pictures of small_faces as class folders, lists, a table, tar and Parquet shards, in one order."""
    root = tmp_path_factory.mktemp("layouts")
    folders = {name: root / name for name in ("folders", "lists", "table", "tar", "parquet")}
    rows = []
    for part, people in PARTS.items():
        for person in people:
            source = small_faces / f"images/s{person:02d}"
            numbers = range(1, 11) if part == "train" else range(1, 3) if part == "gallery" else range(3, 5)
            for number in numbers:
                inner = Path(part, f"p{person:02d}", f"{number:02d}.pgm")
                for folder in (folders["folders"], folders["lists"], folders["table"]):
                    (folder / inner).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(source / f"{number:02d}.pgm", folder / inner)
                rows.append((part, str(inner), person))
    for part in PARTS:
        lines = [f"{path} {person}\n" for own, path, person in rows if own == part]
        (folders["lists"] / f"{part}.txt").write_text("".join(lines))
    table = "".join(f"{path},{person},{part}\n" for part, path, person in rows)
    (folders["table"] / "images.csv").write_text("path,label,split\n" + table)
    pack(folders["lists"], folders["tar"], images=30)
    pack(folders["lists"], folders["parquet"], images=30, to="parquet")
    return folders


def content(path: str) -> str:
    """SHA-256 of an image's bytes, wherever they are."""
    place = path if isinstance(path, ImageSource) else ImageSource(path, path)
    with open(place.file, "rb") as stream:
        stream.seek(place.start)
        return hashlib.sha256(stream.read() if place.length is None else stream.read(place.length)).hexdigest()


def batches(root: Path, *settings: str) -> list[list[tuple[str, int]]]:
    given = (
        "Global.mode=train",
        f"Global.dataset_dir={root}",
        "Train.pretrain_weight_path=null",
        "Train.batch_size=16",
    )
    config = load.load("PP-ShiTuV2_rec", [load.split_override(s) for s in (*given, *settings)])[0]
    data = read_data(config, ProcessGroup())
    files, labels = data.lists["train"].files(), data.labels
    return [[(content(files[i]), int(labels[i])) for i in batch] for batch in data.sampler.epoch(1)]


@pytest.mark.parametrize("settings", [(), ("Train.samples_per_class=null",)], ids=["P x K", "shuffled"])
def test_five_layouts_give_the_same_batches(layouts, settings):
    expected = batches(layouts["lists"], *settings)
    assert len(expected) == 5 and sum(map(len, expected)) == 80
    for name, root in layouts.items():
        assert batches(root, *settings) == expected, name


def test_shards_of_one_size_give_the_same_order_within_a_window(layouts):
    """Their files are the blocks, which loose files have not: stated in docs/scale.md."""
    window = ("Train.samples_per_class=null", "Train.shuffle_window=8")
    tar, parquet, lists = (batches(layouts[name], *window) for name in ("tar", "parquet", "lists"))
    assert tar == parquet != lists
    assert sorted(chain(*tar)) == sorted(chain(*lists))


def test_a_window_moves_no_image_further_than_it_says():
    blocks, window = np.array([0, 300, 650, 1000]), 50
    sampler = WindowSampler(blocks, window, 16, seed=3)
    order = np.concatenate(list(sampler.epoch(0)))
    assert np.array_equal(np.sort(order), np.arange(1000))
    assert np.array_equal(np.concatenate(list(WindowSampler(blocks, window, 16, seed=3).epoch(0))), order)
    assert not np.array_equal(np.concatenate(list(sampler.epoch(1))), order)
    block = np.searchsorted(blocks, order, side="right") - 1
    drawn = list(dict.fromkeys(block.tolist()))
    start = {b: sum(int(np.diff(blocks)[other]) for other in drawn[: drawn.index(b)]) for b in drawn}
    place = np.array([start[b] + i - blocks[b] for b, i in zip(block, order, strict=True)])
    assert np.abs(place - np.arange(1000)).max() < window
    assert np.abs(place - np.arange(1000)).max() > window / 2 and (np.diff(order) != 1).mean() > 0.9


def test_a_window_as_long_as_the_list_is_a_shuffle():
    order = np.concatenate(list(WindowSampler(np.array([0, 2000]), 2000, 64, seed=0).epoch(0)))
    moved = np.abs(order - np.arange(2000))
    expected = np.abs(np.concatenate(list(ShuffleSampler(range(2000), 64, 0).epoch(0))) - np.arange(2000))
    assert moved.mean() > 0.4 * expected.mean() and np.corrcoef(order, np.arange(2000))[0, 1] < 0.75


@pytest.mark.parametrize("size", [2, 3])
def test_processes_share_the_order_of_a_window(size):
    blocks = np.array([0, 40, 100])
    whole = np.concatenate(list(WindowSampler(blocks, 7, 8, 1).epoch(2)))
    parts = [np.concatenate(list(WindowSampler(blocks, 7, 8, 1, rank, size).epoch(2))) for rank in range(size)]
    together = np.stack([np.resize(p, -(-100 // size)) for p in parts], axis=1).ravel()[:100]
    assert np.array_equal(together, whole)


def test_blocks_are_files_that_hold_several_images():
    files = [ImageSource(f"{n}", "a.tar" if n < 3 else "b.tar", n, 1) for n in range(5)]
    assert blocks_of(files, 2).tolist() == [0, 3, 5]
    assert blocks_of([f"{n}.jpg" for n in range(5)], 2).tolist() == [0, 2, 4, 5]


@pytest.mark.slow
def test_tar_shards_are_inputs_of_predict(layouts, run_folder, tmp_path):
    """A folder of shards, a pattern and one file, with the features of the same loose images."""
    folder = run_folder / "best_model/inference"
    model = create_model("PP-ShiTuV2_rec", folder, device="cpu")
    whole = list(model.predict(str(layouts["tar"])))
    pattern = list(model.predict(str(layouts["tar"] / "query-*.tar")))
    lists = require_lists(str(layouts["lists"]), ("train", "gallery", "query"))
    files = list(lists["query"].files())
    loose = {content(f): r["feature"] for f, r in zip(files, model.predict(files), strict=True)}
    assert len(whole) == 80 + 12 + 12 and len(pattern) == 12
    query = require_lists(str(layouts["tar"]), ("query",))["query"]
    for found, source in zip(pattern, query.paths, strict=True):
        assert found["input_path"].endswith(str(source))
        assert np.array_equal(found["feature"], loose[content(source)])
    (tmp_path / "bad.tar").write_bytes((layouts["tar"] / "query-00000.tar").read_bytes()[:3000])
    done = run_here(
        "-c", "PP-ShiTuV2_rec", "-o", "Global.mode=predict", "-o", f"Predict.input={tmp_path}/bad.tar",
        "-o", f"Predict.model_dir={folder}", "-o", f"Global.output={tmp_path}/out", "-o", "Global.device=cpu",
    )  # fmt: skip
    assert done.returncode == 1 and "The tar shard cannot be used: it ends" in done.stderr, done.stderr


def test_a_missing_parquet_shard_is_an_error(layouts, tmp_path):
    shutil.copytree(layouts["parquet"], tmp_path / "p")
    (tmp_path / "p/train-00001.parquet").unlink()
    with pytest.raises(DatasetError, match=r"train-00001\.parquet is not there"):
        require_lists(str(tmp_path / "p"))
    pack(layouts["lists"], tmp_path / "p", images=30, to="parquet")
    assert (tmp_path / "p/train-00001.parquet").read_bytes() == (
        layouts["parquet"] / "train-00001.parquet"
    ).read_bytes()


def test_a_window_needs_an_order_of_all_images(layouts, tmp_path):
    done = run_here("-c", "PP-ShiTuV2_rec", "-o", "Global.mode=train", "-o", "Train.shuffle_window=8")
    assert done.returncode != 0 and "set samples_per_class to null" in done.stderr


@pytest.mark.parametrize(
    "names", [("7", "007", "12"), ("99999999999999999999", "1"), ("3", "\u0663"), ("0", "10", "9")]
)
def test_parquet_shards_keep_the_classes_that_tar_shards_keep(small_faces, tmp_path, names):
    source = small_faces / "images/s01"
    for name in names:
        (tmp_path / "folders" / name).mkdir(parents=True)
        for number in range(1, 5):
            shutil.copy(source / f"{number:02d}.pgm", tmp_path / "folders" / name)
    found = []
    for form in ("tar", "parquet"):
        pack(tmp_path / "folders", tmp_path / form, images=3, to=form)
        lists = require_lists(str(tmp_path / form))
        found.append([r.name_of(label) for r in lists.values() for label in r.labels])
    assert sorted(found[0]) == sorted(found[1]) == sorted(4 * names)


@pytest.mark.slow
def test_names_with_dots_are_images_of_a_shard_and_others_are_counted(small_faces, run_folder, tmp_path, caplog):
    shard = tmp_path / "a.tar"
    with tarfile.open(shard, "w") as tar:
        for name in ("img.v1.png", "plain.png", "2024.01.02 photo.png", "notes.doc", "plain.cls"):
            (tmp_path / "file").write_bytes(cv2.imencode(".png", np.zeros((40, 40, 3), np.uint8))[1].tobytes())
            if name.endswith(".cls"):
                (tmp_path / "file").write_text("cat")
            tar.add(tmp_path / "file", name)
    model = create_model("PP-ShiTuV2_rec", run_folder / "best_model/inference", device="cpu")
    with caplog.at_level("INFO"):
        found = [Path(result["input_path"]).name for result in model.predict(str(shard))]
    assert found == ["img.v1.png", "plain.png", "2024.01.02 photo.png"]


def test_files_of_few_images_count_together_in_a_window():
    boxes = [ImageSource(f"{n}", f"{n}.jpg") for n in range(10)]
    assert blocks_of(boxes, 4).tolist() == [0, 4, 8, 10]
