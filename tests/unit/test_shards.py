"""Shards of features: what they hold, what a merge gives, and what it refuses."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from paddlex_feat.config.load import load, split_override
from paddlex_feat.data.shard import Shard
from paddlex_feat.errors import ConfigError, FeatError, OutputError, ShardError
from paddlex_feat.fileio.npz import NpzReader, NpzWriter
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.inference.inputs.items import Item
from paddlex_feat.inference.merge import main, merge
from paddlex_feat.inference.results import FeatureResult
from paddlex_feat.inference.shards import Inputs, Record, ShardReader, shard_file
from paddlex_feat.inference.writers import save_features

D = 6
MODEL = ModelIdentity("m", "d", "p", D)
FORMS = ["npz", "parquet"]
FAILED = {4, 11}
TOTAL = 23


@pytest.fixture(autouse=True)
def pyarrow():
    pytest.importorskip("pyarrow")


def result(number: int) -> FeatureResult:
    """Of paths, pages, boxes and arrays in turn; one name is long, one is not UTF-8."""
    feature = np.random.default_rng(number).standard_normal(D).astype(np.float32)
    path = [f"{number}.jpg", "x" * 150 + ".png", "猫\udcff.jpg", None][number % 4]
    page, box = (number if number % 5 == 0 else None), ((0, 0.5, 9, 9) if number % 7 == 3 else None)
    return FeatureResult(path, feature, f"r{number}", number, page, box, number)


def written(folder: Path, shard: Shard, form: str = "npz", model: ModelIdentity = MODEL, names: str = "a") -> Path:
    path = folder / f"features-{shard.name}.{form}"
    inputs = Inputs(Item(f"{names}{n}", f"input[{n}]", "") for n in range(TOTAL))
    own = list(shard.part_of(range(TOTAL)))
    for _ in inputs:
        pass
    with shard_file(path, shard, model) as file:
        for number in own:
            if number not in FAILED:
                file.add(number, result(number))
        failed = tuple((n, f"{n}.jpg", "damaged") for n in own if n in FAILED)
        file.close(Record(shard, inputs.count, inputs.digest, model, failed, {".txt files": 2}))
    return path


def whole(path: Path) -> bytes:
    save_features((result(n) for n in range(TOTAL) if n not in FAILED), path, MODEL)
    return path.read_bytes()


@pytest.mark.parametrize("count", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("form", FORMS)
def test_a_merge_gives_the_bytes_of_one_run_in_any_order(tmp_path, form, count):
    shards = [written(tmp_path, Shard(number, count), form) for number in range(count)]
    random.Random(0).shuffle(shards)
    for suffix in (".npz", ".parquet"):
        if form == "parquet" and suffix == ".npz":
            continue  # Parquet's text is UTF-8, so the name that is not has become another one
        target = tmp_path / f"merged{suffix}"
        record, features = merge(target, shards)
        assert features == TOTAL - len(FAILED) and [n for n, *_ in record.failed] == sorted(FAILED)
        assert target.read_bytes() == whole(tmp_path / f"whole{suffix}")


def test_the_command_takes_folders_and_tells_what_failed(tmp_path, capsys):
    for number in range(3):
        written(tmp_path, Shard(number, 3))
    assert main([str(tmp_path / "all.npz"), str(tmp_path)]) == 0
    told = capsys.readouterr()
    assert f"21 features of {TOTAL} images" in told.out and "4.jpg: damaged" in told.err


def test_an_existing_target_is_kept_as_a_backup_and_a_refused_merge_leaves_it(tmp_path):
    shards = [written(tmp_path, Shard(number, 2)) for number in range(2)]
    target = tmp_path / "all.npz"
    target.write_bytes(b"mine")
    with pytest.raises(ShardError):
        merge(target, shards[:1])
    assert target.read_bytes() == b"mine" and not (tmp_path / "all.npz.bak").exists()
    merge(target, shards)
    assert (tmp_path / "all.npz.bak").read_bytes() == b"mine"


@pytest.mark.parametrize("form", FORMS)
def test_mixtures_are_refused_by_name(tmp_path, form):
    parts = [written(tmp_path, Shard(number, 3), form) for number in range(3)]
    folder = tmp_path / "others"
    other_model = written(folder / "model", Shard(2, 3), form, ModelIdentity("m", "e", "p", D))
    other_names = written(folder / "names", Shard(2, 3), form, names="b")
    other_count = written(folder / "count", Shard(2, 4), form)
    for wrong, words in (
        (other_model, "weights differ"),
        (other_names, "other names, or another order"),
        (other_count, "of 4 parts and of 3"),
    ):
        with pytest.raises(ShardError, match=words) as caught:
            merge(tmp_path / "all.npz", [*parts[:2], wrong])
        assert parts[0].name in str(caught.value) and str(wrong) in str(caught.value)
    with pytest.raises(ShardError, match="are both shard 1/3"):
        merge(tmp_path / "all.npz", [*parts, written(folder / "again", Shard(1, 3), form)])
    with pytest.raises(ShardError, match="1 of 3 shards are missing, such as 2/3"):
        merge(tmp_path / "all.npz", parts[:2])
    plain = tmp_path / f"plain.{form}"
    save_features([result(0)], plain)
    for strange in (plain, tmp_path / "nothing.npz", tmp_path / "text.txt"):
        with pytest.raises(ShardError):
            merge(tmp_path / "all.npz", [*parts, strange])
    assert not (tmp_path / "all.npz").exists()


@pytest.mark.parametrize("form", FORMS)
def test_damaged_shards_are_errors_of_ours_and_leave_nothing(tmp_path, form):
    parts = [written(tmp_path, Shard(number, 2), form) for number in range(2)]
    sound, refused = parts[1].read_bytes(), 0
    chance = random.Random(1)
    for case in range(300):
        data = bytearray(sound)
        if case % 3 == 0:
            del data[chance.randrange(len(data)) :]
        else:
            for _ in range(chance.choice((1, 4, 30))):
                data[chance.randrange(len(data))] = chance.randrange(256)
        parts[1].write_bytes(data)
        try:
            merge(tmp_path / "all.npz", parts)
            (tmp_path / "all.npz").unlink()
        except FeatError:
            refused += 1
        assert not (tmp_path / "all.npz").exists()
    assert refused > 150


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([0, 2, 2], "image 2 does not follow"), ([0], "ends before image 2"), ([2, 0], "image 2 does not follow"),
     ([0, 1], "image 1 does not follow"), ([0, 2, 4, 6], "image 6 does not follow")],
)  # fmt: skip
@pytest.mark.parametrize("form", FORMS)
def test_rows_that_are_not_the_shards_own_are_refused(tmp_path, form, numbers, words):
    shard, path = Shard(0, 2), tmp_path / f"part.{form}"
    with shard_file(path, shard, MODEL) as file:
        for number in numbers:
            file.add(number, result(number))
        file.close(Record(shard, 5, "d", MODEL))
    with ShardReader(path) as reader, pytest.raises(ShardError, match=words):
        list(reader.rows())


def test_nothing_is_left_of_a_shard_that_is_not_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt), shard_file(tmp_path / "part.npz", Shard(0, 2), MODEL) as file:
        file.add(0, result(0))
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_compressed_file_is_no_shard_however_small_it_is(tmp_path):
    """A few kilobytes of it may be gigabytes."""
    path = written(tmp_path, Shard(0, 1))
    with np.load(path) as arrays:
        np.savez_compressed(path, **dict(arrays))
    with pytest.raises(ShardError, match="is compressed"):
        ShardReader(path)


def test_a_target_that_is_a_shard_is_refused(tmp_path):
    parts = [written(tmp_path, Shard(number, 2)) for number in range(2)]
    before = parts[0].read_bytes()
    with pytest.raises(ConfigError, match="is one of the shards"):
        merge(parts[0], parts)
    assert parts[0].read_bytes() == before


def test_there_may_be_more_shards_than_files_that_a_process_may_open_at_first(tmp_path):
    resource, opened = pytest.importorskip("resource"), Path("/proc/self/fd")
    if not opened.is_dir():
        pytest.skip("open files are counted by /proc")
    shards = [written(tmp_path, Shard(number, 150)) for number in range(150)]
    former = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(opened.iterdir())) + 60, former[1]))
    try:
        assert merge(tmp_path / "all.npz", shards)[1] == TOTAL - len(FAILED)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, former)


@pytest.mark.parametrize("form", FORMS)
def test_what_cannot_be_read_now_is_not_said_to_be_damaged(tmp_path, form):
    path = written(tmp_path, Shard(0, 1), form)
    path.chmod(0)
    folder = tmp_path / f"folder.{form}"
    folder.mkdir()
    for strange in [folder] if os.access(path, os.R_OK) else [folder, path]:
        with pytest.raises(ShardError) as caught:
            ShardReader(strange)
        assert "Remove" not in str(caught.value), str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_a_record_of_very_many_failures_is_read(tmp_path, form):
    """Of a drive that was not there."""
    path, many = tmp_path / f"features-00000-of-00001.{form}", 300_000
    failed = tuple(
        (number, f"photos/{number:09d}.jpg", "The input does not exist. " + "x" * 200) for number in range(many)
    )
    with shard_file(path, Shard(0, 1), MODEL) as file:
        file.close(Record(Shard(0, 1), many, "d", MODEL, failed))
    with ShardReader(path) as reader:
        assert len(reader.record.failed) == many and list(reader.rows()) == []


def test_a_job_without_any_feature_has_nothing_to_merge(tmp_path):
    with shard_file(tmp_path / "part.npz", Shard(0, 1), MODEL) as file:
        file.close(Record(Shard(0, 1), 0, "d", MODEL))
    with pytest.raises(OutputError, match="No image"):
        merge(tmp_path / "all.npz", [tmp_path / "part.npz"])
    failed = ((0, "a.jpg", "damaged"), (1, "b.jpg", "missing"))
    with shard_file(tmp_path / "failed.npz", Shard(0, 1), MODEL) as file:
        file.close(Record(Shard(0, 1), 2, "d", MODEL, failed))
    with pytest.raises(OutputError, match=r"All 2 inputs had failed:\n    a\.jpg: damaged\n    b\.jpg: missing"):
        merge(tmp_path / "all.npz", [tmp_path / "failed.npz"])


@pytest.mark.parametrize("text", ["8/8", "3", "a/b", "-1/4", "1/0", "1.5/3", ""])
def test_what_is_no_shard_is_an_error_of_the_configuration(text):
    with pytest.raises(ConfigError, match=r"Predict\.shard"):
        load("PP-ShiTuV2_rec", [split_override("Global.mode=predict"), split_override(f"Predict.shard={text}")])


def test_texts_of_an_npz_are_read_as_they_were(tmp_path):
    texts = ["", "a", "猫", "x" * 1000, "\udcff", ""]
    with NpzWriter(tmp_path / "a.npz") as writer:
        writer.write_texts("t", texts)
        writer.write_texts("none", [])
    reader = NpzReader(tmp_path / "a.npz")
    assert reader.texts("t") == texts and reader.texts("none") == []
    assert np.load(tmp_path / "a.npz", allow_pickle=False)["t_offsets"].tolist() == [0, 0, 1, 4, 1004, 1007, 1007]
    reader.close()


def test_a_record_is_what_was_written(tmp_path):
    path = written(tmp_path, Shard(0, 2))
    with ShardReader(path) as reader:
        record = reader.record
    assert record.shard == Shard(0, 2) and record.inputs == TOTAL and record.left_out == {".txt files": 2}
    assert record.failed == ((4, "4.jpg", "damaged"),) and json.loads(record.as_text())["version"] == 1
