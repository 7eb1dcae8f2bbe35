"""Images as bytes within larger files: tar shards, Parquet files, and image folders of Hugging Face."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import sys
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.decode import read_content
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.images.source import Box, ImageSource
from paddlex_feat.data.loading.loader import evaluation_batches, training_batches
from paddlex_feat.data.loading.processes import DecodingProcesses
from paddlex_feat.data.readers import LISTS, READERS, find_root, parquet_file, reader_of, require_lists
from paddlex_feat.data.readers.items import UNDIVIDED
from paddlex_feat.data.readers.spec import Reading
from paddlex_feat.errors import DatasetError, DependencyError, FeatError

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
CASES = int(os.environ.get("PADDLEX_FEAT_FUZZ_CASES", "150"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(folder))
    return folder


def picture(number: int, suffix: str = ".png") -> bytes:
    colours = np.random.default_rng(number).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return cv2.imencode(suffix, cv2.resize(colours, (50, 40)))[1].tobytes()


PICTURES = [picture(i) for i in range(12)]
LABELS = ["red rose", "blåbær", "red rose", "[x] 花"] * 3


def write_tar(path: Path, members: dict[str, bytes] | list[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members.items() if isinstance(members, dict) else members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def samples(numbers, label: str = "cls") -> dict[str, bytes]:
    found = {}
    for i in numbers:
        text = json.dumps({"width": 50, "label": LABELS[i]}) if label == "json" else LABELS[i]
        found |= {f"{i:05}.png": PICTURES[i], f"{i:05}.{label}": text.encode()}
    return found


def hugging_face(numbers, paths: bool = True, **columns) -> pa.Table:
    names = sorted(set(LABELS))
    images = [{"bytes": PICTURES[i], "path": f"{i}.png" if paths else None} for i in numbers]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    table = pa.table({"image": images, "label": [names.index(LABELS[i]) for i in numbers], **columns})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def read(root: Path, names=LISTS, refuse=False):
    found = find_root(str(root), names)
    reader = reader_of(found, names)
    reading = Reading(*reader.read(found, names, refuse))
    if UNDIVIDED in reading.lists:
        reading.lists["train"] = reading.lists.pop(UNDIVIDED)
    return reader.name, reading


def classes_of(records) -> list[str]:
    return [records.names.get(label, str(label)) for label in records.labels]


def codes(reading) -> list[str]:
    return [finding.code for finding in reading.findings]


@pytest.mark.parametrize("label", ["cls", "json", "txt"])
@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards_are_divided_by_their_names_and_have_the_bytes_of_each_image(tmp_path, label, form):
    for number, (part, numbers) in enumerate((("train", range(4)), ("train", range(4, 8)), ("test", range(8, 12)))):
        write_tar(tmp_path / "a [b] ü" / f"{part}-{number:06}.tar", samples(numbers, label), form)
    for _ in range(2):  # the second time by the stored index
        name, reading = read(tmp_path)
        assert name == "TarShards" and not reading.findings
        train, gallery, query = (reading.lists[name] for name in LISTS)
        assert [read_content(file) for file in train.files()] == PICTURES[:8]
        assert [read_content(file) for file in reversed(gallery.files())] == PICTURES[:7:-1]
        assert classes_of(train) == LABELS[:8] and query.leave_one_out
        assert train.paths[5] == "train-000001.tar/00005.png"


def test_folders_of_parts_and_long_and_odd_names(tmp_path):
    long = "x" * 150 + "/" + "ü" * 90
    write_tar(tmp_path / "train/0.tar", {f"{long}.a": b"", f"{long}.jpg": PICTURES[0], f"{long}.cls": b"3\n"})
    write_tar(tmp_path / "val/0.tar", {"./a b [1].jpeg": PICTURES[1], "./a b [1].cls": b"3", "README": b"hello"})
    (tmp_path / "notes.pdf").write_bytes(b"x")
    name, reading = read(tmp_path)
    assert name == "TarShards" and reading.lists["train"].paths == [f"train/0.tar/{long}.jpg"]
    assert reading.lists["gallery"].paths == ["val/0.tar/a b [1].jpeg"] and reading.lists["gallery"].labels == [3]


def test_samples_need_not_be_in_order(tmp_path):
    members = list(samples(range(6)).items())
    random.Random(0).shuffle(members)
    write_tar(tmp_path / "train.tar", members)
    write_tar(tmp_path / "test.tar", samples(range(6)))
    train = read(tmp_path)[1].lists["train"]
    assert {path: read_content(file) for path, file in zip(train.paths, train.files(), strict=True)} == {
        f"train.tar/{i:05}.png": PICTURES[i] for i in range(6)
    }


def test_what_is_not_a_shard_is_not_claimed(tmp_path):
    captions = {f"{i}.txt": f"a photo of thing {i}".encode() for i in range(9)}
    write_tar(tmp_path / "captions.tar", captions | {f"{i}.jpg": PICTURES[i] for i in range(9)})
    write_tar(tmp_path / "backup.tar", {"cat/1.jpg": PICTURES[0], "cat/2.jpg": PICTURES[1], "model.json": b'{"a": 1}'})
    (tmp_path / "empty.tar").write_bytes(b"")
    (tmp_path / "noise.tar").write_bytes(random.Random(0).randbytes(5000))
    os.mkfifo(tmp_path / "pipe.tar")
    (tmp_path / "folder.tar").mkdir()
    assert READERS.get("TarShards").count_lists(tmp_path, LISTS) == 0


def test_compressed_shards_say_what_to_do(tmp_path):
    with tarfile.open(tmp_path / "train-0.tar.gz", "w:gz") as tar:
        for name, data in samples(range(3)).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(DatasetError, match="compressed archive"):
        require_lists(str(tmp_path))
    (tmp_path / "train-0.tar.gz").rename(tmp_path / "train-0.tar")  # by its content
    with pytest.raises(DatasetError, match="compressed archive"):
        require_lists(str(tmp_path))


def test_odd_members_are_findings_and_the_rest_is_read(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples(range(4)))
    with tarfile.open(tmp_path / "train-0.tar", "a") as tar:
        for name, kind in (("l.jpg", tarfile.SYMTYPE), ("h.cls", tarfile.LNKTYPE), ("d.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "00000.png"
            tar.addfile(member)
        for name, data in (("00001.png", b"again"), ("8.png", b"no class"), ("9.png", b"1"), ("9.jpg", b"2"),
                           ("9.cls", b"\xff\xfe"), ("9.json", b"[" * 60000)):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    found = read(tmp_path, ("train",))[1]
    assert [read_content(f) for f in found.lists["train"].files()] == PICTURES[:4]
    assert sorted(codes(found)) == sorted(
        ["shard-member"] * 3 + ["shard-repeated", "shard-images"] + ["shard-class"] * 3
    )


def test_a_truncated_shard_is_read_to_its_end_and_is_an_error(tmp_path):
    write_tar(tmp_path / "train-0.tar", samples(range(12)))
    write_tar(tmp_path / "test-0.tar", samples(range(12)))
    whole = (tmp_path / "train-0.tar").read_bytes()
    for size in (len(whole) - len(whole) % 512 - 10240, len(whole) // 2, 3 * 512 + 4):
        (tmp_path / "train-0.tar").write_bytes(whole[:size])
        reading = read(tmp_path)[1]
        assert "shard-damaged" in codes(reading)
        assert all(read_content(file) in PICTURES for file in reading.lists["train"].files())
    (tmp_path / "test-0.tar").unlink()  # what is left cannot be divided, and that is not the fault
    (tmp_path / "train-0.tar").write_bytes(whole[: len(whole) // 4])
    with pytest.raises(DatasetError, match=r"ends (early|within)"):
        require_lists(str(tmp_path))


def test_a_size_that_leads_back_ends(tmp_path):
    """CVE-2025-8194: a negative size in a PAX header reads the same member for ever."""
    record = b"17 size=-0001024\n"
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for name, data in samples(range(2)).items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        extended = tarfile.TarInfo("x")
        extended.type, extended.size = tarfile.XHDTYPE, len(record)
        tar.addfile(extended, io.BytesIO(record))
        tar.addfile(tarfile.TarInfo("9.jpg"))
    assert "shard-damaged" in codes(read(tmp_path, ("train",))[1])


def test_an_index_is_made_once_and_again_for_a_changed_shard(tmp_path, cache, monkeypatch):
    shard = tmp_path / "train-0.tar"
    write_tar(shard, samples(range(4)))
    made = []
    from paddlex_feat.data.readers import tar_shards

    monkeypatch.setattr(
        tar_shards, "make_index", lambda path, real=tar_shards.make_index: made.append(path) or real(path)
    )
    read(tmp_path)
    read(tmp_path)
    assert len(made) == 1
    write_tar(shard, samples(range(4, 12)))
    assert len(read(tmp_path)[1].lists["train"]) and len(made) == 2
    assert len(list(cache.rglob("*.json"))) == 1 and not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize("damage", ["digest", "bounds", "types", "empty", "not json"])
def test_a_damaged_index_is_not_believed(tmp_path, cache, damage):
    from hashlib import sha256

    write_tar(tmp_path / "train-0.tar", samples(range(8)))
    right = read(tmp_path)[1].lists["train"].files()
    (index,) = cache.rglob("*.json")
    body = json.loads(index.read_bytes().partition(b"\n")[2])
    if damage == "bounds":
        body["length"][0] = 10**9
    elif damage == "types":
        body["start"][0] = "0"
    elif damage == "digest":
        body["start"][0] += 1
    text = {"empty": b"", "not json": b"[" * 10000}.get(damage, json.dumps(body).encode())
    digest = b"0" * 64 if damage == "digest" else sha256(text).hexdigest().encode()
    index.write_bytes(digest + b"\n" + text)
    again = read(tmp_path)[1].lists["train"].files()
    assert [(f, f.start, f.length) for f in again] == [(f, f.start, f.length) for f in right]


@pytest.mark.parametrize("paths", [True, False])
def test_parquet_of_hugging_face(tmp_path, cache, paths):
    (tmp_path / "data").mkdir()
    (tmp_path / "README.md").write_text("---\n---\n")
    for name, numbers in (("train-00000-of-00002", range(4)), ("train-00001-of-00002", range(4, 8)),
                          ("test-00000-of-00001", range(8, 12))):  # fmt: skip
        pq.write_table(hugging_face(numbers, paths), tmp_path / f"data/{name}.parquet", row_group_size=3)
    for _ in range(2):
        name, reading = read(tmp_path)
        assert name == "Parquet" and not reading.findings
        train, gallery = reading.lists["train"], reading.lists["gallery"]
        assert [read_content(file) for file in train.files()] == PICTURES[:8]
        assert [read_content(file) for file in gallery.files()] == PICTURES[8:]
        assert classes_of(train) == LABELS[:8]
    assert train.paths[0] == "train-00000-of-00002.parquet" + ("/0.png" if paths else ":1")
    assert len(list(cache.rglob("*.bytes"))) == 3
    next(cache.rglob("*.bytes")).write_bytes(b"cut")  # is unpacked again
    again = read(tmp_path)[1].lists
    assert [read_content(f) for name in ("train", "gallery") for f in again[name].files()] == PICTURES


def test_equal_images_are_unpacked_once_and_names_stay_different(tmp_path, cache):
    pq.write_table(hugging_face([0, 0, 1, 1, 0, 3, 0]), tmp_path / "all.parquet")
    files = [f for records in read(tmp_path)[1].lists.values() for f in records.files()]
    assert len(set(files)) == 7 and next(cache.rglob("*.bytes")).stat().st_size == sum(
        map(len, (PICTURES[i] for i in (0, 1, 3)))
    )


def test_parquet_as_a_table(tmp_path):
    for i, data in enumerate(PICTURES):
        (tmp_path / f"{i}.png").write_bytes(data)
    table = pa.table(
        {
            "file name": [*(f"{i}.png" for i in range(12)), "s3://a/b.png", "", None],
            "category": pa.array([*LABELS, "a", "b", "c"]).dictionary_encode(),
            "split": ["train"] * 6 + ["test"] * 9,
            "bbox": [[0.0, 0.0, 5.0, 6.5]] * 10 + [[5.0, 0.0, 1.0, 1.0]] + [None] * 4,
        }
    )
    pq.write_table(table, tmp_path / "table.parquet")
    name, reading = read(tmp_path)
    assert name == "Parquet" and sorted(codes(reading)) == ["table-box", "table-path", "table-path", "table-url"]
    train, gallery = reading.lists["train"], reading.lists["gallery"]
    assert train.files()[0].box == Box(0, 0, 5, 6.5) and classes_of(train) == LABELS[:6]
    assert gallery.paths[-1] == "11.png" and gallery.where(0) == "table.parquet:7"


def test_a_parquet_file_without_images_is_not_claimed(tmp_path):
    pq.write_table(pa.table({"audio": [{"bytes": b"RIFF", "path": "a.wav"}], "label": [0]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"text": ["a"], "label": [0]}), tmp_path / "b.parquet")
    assert READERS.get("Parquet").count_lists(tmp_path, LISTS) == 0
    pq.write_table(pa.table({"image": [b"not an image"], "label": [0]}), tmp_path / "c.parquet")
    pq.write_table(pa.table({"path": ["gone.jpg"], "label": [0]}), tmp_path / "d.parquet")
    assert READERS.get("Parquet").count_lists(tmp_path, LISTS) == 2  # the user is told, and others may have it


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    pq.write_table(hugging_face(range(8)), tmp_path / "train.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(DependencyError, match=r"need pyarrow") as error:
        require_lists(str(tmp_path))
    assert "paddlex_feat[parquet]" in error.value.fix
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(6):
            (tmp_path / name / f"{i}.png").write_bytes(PICTURES[i])
    with pytest.raises(DatasetError, match="format Parquet"):  # whose images are not those of the folders
        find_root(str(tmp_path))
    assert reader_of(find_root(str(tmp_path), form="ClassFolders"), form="ClassFolders").name == "ClassFolders"


def test_files_of_other_columns_are_named(tmp_path):
    pq.write_table(hugging_face(range(8)), tmp_path / "train-0.parquet")
    pq.write_table(pa.table({"a": [1]}), tmp_path / "train-1.parquet")
    pq.write_table(hugging_face(range(8)), tmp_path / "zzz.parquet")
    (tmp_path / "train-2.parquet").write_bytes(b"PAR1 and more")
    assert sorted(codes(read(tmp_path)[1])) == ["parquet-other", "parquet-other", "parquet-unreadable"]


def test_a_file_that_declares_too_many_rows_is_refused(tmp_path, monkeypatch):
    pq.write_table(hugging_face(range(8)), tmp_path / "train-0.parquet")
    monkeypatch.setattr(parquet_file, "_MAX_ROWS", 7)
    assert READERS.get("Parquet").count_lists(tmp_path, LISTS) == 0


def image_folder(folder: Path, numbers, form: str) -> None:
    folder.mkdir(parents=True)
    rows = [{"file_name": f"im {i}.png", "text": ["x"], "label": LABELS[i]} for i in numbers]
    for i in numbers:
        (folder / f"im {i}.png").write_bytes(PICTURES[i])
    if form == "jsonl":
        text = "".join(json.dumps(row, ensure_ascii=i % 2 == 0) + "\n" for i, row in enumerate(rows))
    else:
        text = "file_name,label\n" + "".join(f'"{row["file_name"]}",{row["label"]}\n' for row in rows)
    (folder / f"metadata.{form}").write_text(text, encoding="utf-8")


@pytest.mark.parametrize("form", ["csv", "jsonl"])
@pytest.mark.parametrize("below", ["", "set"])
def test_image_folders(tmp_path, form, below):
    image_folder(tmp_path / below / "train", range(8), form)
    image_folder(tmp_path / below / "test", range(8, 12), form)
    name, reading = read(tmp_path)
    assert name == "ImageFolders" and not reading.findings
    train, gallery = reading.lists["train"], reading.lists["gallery"]
    assert [read_content(f) for f in (*train.files(), *gallery.files())] == PICTURES
    assert classes_of(train) == LABELS[:8] and train.paths[0] == "train/im 0.png"


def test_one_folder_with_bad_lines(tmp_path):
    image_folder(tmp_path / "x", range(12), "jsonl")
    with (tmp_path / "x/metadata.jsonl").open("a") as stream:
        for line in ('{"file_name": 3', "[]", "[" * 5000, '{"file_name": {"a": 1}, "label": "b"}', '{"label": "a"}',
                     '{"file_name": "a.jpg"}', '{"file_name": "s3://a/b.jpg", "label": 3}',
                     '{"file_name": "a.jpg", "label": ' + "9" * 5000 + "}"):  # fmt: skip
            stream.write(f"{line}\n")
    name, reading = read(tmp_path)
    assert name == "ImageFolders" and sum(map(len, reading.lists.values())) == 12
    unreadable = ["table-unreadable"] * 5
    assert sorted(codes(reading)) == sorted([*unreadable, "table-path", "table-class", "table-url"])
    assert reading.findings[0].where == "metadata.jsonl:13"


def test_refused_paths(tmp_path):
    """Shards and unpacked files are the data set's own; a link that leaves the folder, and a box's file, are not."""
    home = tmp_path / "set"
    write_tar(home / "train-0.tar", samples(range(8)))
    write_tar(tmp_path / "other.tar", samples(range(8)))
    assert not read(home, LISTS, refuse=True)[1].findings
    (home / "test-0.tar").symlink_to(tmp_path / "other.tar")
    assert codes(read(home, LISTS, refuse=True)[1]) == ["path-leaves"]
    pq.write_table(hugging_face(range(8)), (tmp_path / "p").mkdir() or tmp_path / "p/train.parquet")
    assert not read(tmp_path / "p", LISTS, refuse=True)[1].findings
    boxes = tmp_path / "boxes"
    boxes.mkdir()
    (boxes / "a.png").write_bytes(PICTURES[0])
    rows = [*(f"a.png,{i % 3},0,0,{i + 2},9" for i in range(12)), "../a.png,1,0,0,3,3", f"{tmp_path}/a.png,1,0,0,3,3"]
    (boxes / "t.csv").write_text("\n".join(["path,label,x1,y1,x2,y2", *rows]))
    assert sorted(codes(read(boxes, LISTS, refuse=True)[1])) == ["path-absolute", "path-leaves"]


@pytest.fixture(scope="module")
def same_images(tmp_path_factory) -> dict[str, Path]:
    """One data set as loose files with a table, as a shard, and as Parquet."""
    top = tmp_path_factory.mktemp("same")
    (top / "loose").mkdir()
    for i, data in enumerate(PICTURES):
        (top / f"loose/{i}.png").write_bytes(data)
    rows = "".join(f"{i}.png,{LABELS[i]},{'train' if i < 8 else 'test'}\n" for i in range(12))
    (top / "loose/t.csv").write_text(f"path,label,split\n{rows}", encoding="utf-8")
    for name, numbers in (("train", range(8)), ("test", range(8, 12))):
        write_tar(top / f"tar/{name}-0.tar", samples(numbers))
        (top / "parquet").mkdir(exist_ok=True)
        pq.write_table(hugging_face(numbers), top / f"parquet/{name}-0.parquet")
    return {form: top / form for form in ("loose", "tar", "parquet")}


def batches_of(files: list[str]) -> list[np.ndarray]:
    orders = [np.random.default_rng(i).integers(0, 8, 5) for i in range(3)]
    found = [images for _, images in evaluation_batches(files, Preprocess(32), 3, 2)]
    for cache in (None, ImageCache(2**20)):
        found += [im for _, im in training_batches(orders, files, Preprocess(32), Augment(), (7, 1, 0), 2, cache=cache)]
    return found


def test_the_same_images_give_the_same_batches_from_any_form(same_images):
    found = {form: require_lists(str(root))["train"] for form, root in same_images.items()}
    right = batches_of(found["loose"].files())
    for records in found.values():
        assert classes_of(records) == LABELS[:8]
        assert all(np.array_equal(a, b) for a, b in zip(batches_of(records.files()), right, strict=True))
    assert not np.array_equal(right[0][0], right[0][1])


@pytest.mark.skipif(sys.platform != "linux", reason="memory files are Linux's")
def test_decoding_processes_get_the_sources_as_they_are(same_images):
    files = require_lists(str(same_images["tar"]))["train"].files()
    whole = require_lists(str(same_images["loose"]))["train"].files()
    box = Box(3, 4, 30, 31)
    files = [*files, ImageSource("boxed", whole[2], box=box), ImageSource("boxed in tar", files[3].file, files[3].start,
                                                                         files[3].length, box)]  # fmt: skip
    orders, key = [np.arange(len(files)), np.arange(len(files))[::-1]], (7, 1, 0)
    right = list(training_batches(orders, files, Preprocess(32), Augment(), key, 2))
    processes = DecodingProcesses(1, 40, Augment(), Preprocess(32), ImageCache(10**6))
    try:
        processes.wait_until_ready()
        for _ in range(2):  # the second epoch from the cache
            for (_, one), (_, other) in zip(processes.batches(orders, files, key), right, strict=True):
                assert np.array_equal(one, other)
    finally:
        processes.close()


def damaged(data: bytes, rng: random.Random) -> bytes:
    kind, found = rng.randrange(4), bytearray(data)
    if kind == 0:
        return data[: rng.randrange(len(data))]
    if kind == 1:
        at = rng.randrange(len(found))
        del found[at : at + rng.randrange(1, 600)]
    for _ in range(rng.randrange(1, 40) if found else 0):
        found[rng.randrange(len(found))] = rng.randrange(256)
    if kind == 3 and len(found) > 600:
        at = 512 * rng.randrange(len(found) // 512)
        found[at + 124 : at + 136] = struct.pack(
            ">12s", rng.choice([b"-0000001024", b"77777777777", b"\x80" + b"\xff" * 10])
        )
    return bytes(found)


def only_ours(name: str, root: Path) -> bool:
    """Whether the reader still claims the folder; whatever it does, it raises only our errors."""
    reader = READERS.get(name)
    try:
        claimed = reader.count_lists(root, LISTS) == 3
        lists = reader.read(root, LISTS, False)[0]
    except FeatError:
        return False
    for records in lists.values():
        for file in records.files():
            if isinstance(file, ImageSource):
                assert 0 <= file.start <= file.start + file.length <= Path(file.file).stat().st_size
    return claimed


@pytest.mark.parametrize("form", ["tar", "parquet", "jsonl"])
def test_damaged_files_give_our_errors_or_findings(tmp_path, form):
    rng = random.Random(18)
    if form == "tar":
        file = tmp_path / "train-0.tar"
        write_tar(file, samples(range(4)))
        with file.open("rb") as stream:
            whole = stream.read()
    elif form == "parquet":
        file = tmp_path / "train-0.parquet"
        pq.write_table(hugging_face(range(4)), file)
        whole = file.read_bytes()
    else:
        image_folder(tmp_path / "x", range(8), "jsonl")
        file = tmp_path / "x/metadata.jsonl"
        whole = file.read_bytes()
    name = {"tar": "TarShards", "parquet": "Parquet", "jsonl": "ImageFolders"}[form]
    claimed = 0
    for _ in range(CASES):
        file.write_bytes(damaged(whole, rng))
        claimed += only_ours(name, file.parent)
    assert 0 < claimed < CASES
