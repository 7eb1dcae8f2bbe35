"""The store of a gallery: what is acknowledged stays, others' changes are seen, foreign files are refused."""

from __future__ import annotations

import os
import random
import sqlite3
import tempfile
from pathlib import Path

import numpy as np
import pytest

from paddlex_feat.data.images.source import Box
from paddlex_feat.errors import GalleryError
from paddlex_feat.search.items import NewItem
from paddlex_feat.search.problems import REBUILT
from paddlex_feat.search.store import EpochChanged, Store

META = {"model": {"name": "m", "digest": "d", "preprocess": "p", "dimension": 4}}


def vector(number: int) -> np.ndarray:
    row = np.random.default_rng(number).standard_normal(4)
    return (row / np.linalg.norm(row)).astype(np.float32)


def item(number: int, **values: object) -> NewItem:
    return NewItem(f"k{number}", vector(number), **values)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "a.gallery"


@pytest.fixture
def store(path):
    with Store(path, META) as made:
        yield made


def whole(store: Store, known: int = 0) -> dict[int, np.ndarray]:
    found: dict[int, np.ndarray] = {}
    for difference in store.differences(known, store.epoch()):
        for i in difference.removed:
            found.pop(i, None)
        found |= dict(zip(difference.ids.tolist(), difference.vectors, strict=True))
    return found


def test_items_are_given_back_as_they_were_added(store):
    full = item(1, label="猫 🐈", path="a/b.jpg", box=Box(1, 2, 3.5, 4), data={"price": [1, None]}, thumbnail=b"jpeg")
    assert store.add([full, item(2)]) == [1, 2]
    first, second = store.items([1, 2])
    assert (first.key, first.label, first.path, first.box) == ("k1", "猫 🐈", "a/b.jpg", Box(1, 2, 3.5, 4))
    assert first.data == {"price": [1, None]} and second.label is second.box is second.data is None
    assert store.thumbnail(1) == b"jpeg" and store.thumbnail(2) is None and store.thumbnail(3) is None
    assert all((row == vector(i)).all() for i, row in whole(store).items())
    assert store.labels() == [(None, 1), ("猫 🐈", 1)] and store.count() == 2


def test_a_key_that_is_there_is_replaced_and_keeps_its_id(store):
    store.add([item(1, label="a", thumbnail=b"x"), item(2)])
    assert store.add([NewItem("k1", vector(9), "b")]) == [1]
    assert store.items([1])[0].label == "b" and (whole(store)[1] == vector(9)).all()
    assert store.thumbnail(1) is None and store.count() == 2


def test_ids_are_never_given_twice(store):
    store.add([item(1), item(2)])
    assert store.remove([2, 77]) == 1
    assert store.add([item(3)]) == [3]
    store.remove([3])
    store.compact()
    assert store.add([item(3)]) == [4]


def test_items_are_found_by_keys_and_labels_page_by_page(store):
    store.add([item(i, label=("x", "y", None)[i % 3]) for i in range(30)])
    assert [i.key for i in store.find(labels=["x"])][:2] == ["k0", "k3"]
    assert [i.key for i in store.find(keys=["k5", "k4", "nothing"])] == ["k4", "k5"]
    assert [i.key for i in store.find(keys=["k5", "k4"], labels=["y"])] == ["k4"]
    assert len(list(store.find(labels=[None]))) == 10 and len(list(store.find(labels=[None, "x"]))) == 20
    first = list(store.find(limit=7))
    assert [i.id for i in (*first, *store.find(after=first[-1].id))] == list(range(1, 31))
    assert not list(store.find(keys=[]))


def test_another_connection_sees_the_difference_alone(path, store):
    store.add([item(i) for i in range(10)])
    with Store(path) as other:
        known = other.meta()["change"]
        assert (
            len(whole(other)) == 10 and not other.changed(known) and not list(other.differences(known, other.epoch()))
        )
        store.add([NewItem("k3", vector(99)), item(10)])
        store.remove([1, 2])
        assert other.changed(known)
        parts = list(other.differences(known, other.epoch()))
        assert [d.removed for d in parts] == [[1, 2]] and parts[0].ids.tolist() == [4, 11]
        assert (parts[0].vectors[0] == vector(99)).all()


def test_differences_add_up_to_the_whole(path, store):
    rng, keys = random.Random(1), list(range(40))
    with Store(path) as other:
        known, seen = 0, {}
        for step in range(60):
            if rng.random() < 0.6:
                store.add([NewItem(f"k{k}", vector(1000 * step + k)) for k in rng.sample(keys, 5)])
            else:
                store.remove([i.id for i in store.find(keys=[f"k{k}" for k in rng.sample(keys, 5)])])
            if step % 3 == 0:
                for difference in other.differences(known, other.epoch()):
                    for i in difference.removed:
                        seen.pop(i, None)
                    seen |= dict(zip(difference.ids.tolist(), difference.vectors, strict=True))
                    known = difference.change
                expected = whole(store)
                assert seen.keys() == expected.keys() and all((seen[i] == expected[i]).all() for i in seen)


def test_features_of_a_model_that_another_process_has_exchanged_are_refused(path, store):
    store.add([item(1)])
    with Store(path) as other:
        epoch = other.epoch()
        store.replace_vectors({**META["model"], "model": "another"}, [1], np.stack([vector(9)]), store.version())
        with pytest.raises(GalleryError) as caught:
            other.add([item(2)])
        assert caught.value.code == REBUILT and other.count() == 1
        with pytest.raises(EpochChanged):
            next(other.differences(1, epoch))
    store.add([item(2)])
    assert store.count() == 2


def test_a_rebuild_does_not_give_a_replaced_image_the_features_of_the_former_one(path, store):
    store.add([item(1), item(2)])
    version = store.version()
    store.set_meta("note", 1)  # no change of images
    assert store.version() == version and not store.fresh_since(version)
    with Store(path) as other:
        other.add([NewItem("k1", vector(7))])
    assert store.fresh_since(version) == 1
    with pytest.raises(GalleryError) as caught:
        store.replace_vectors(META["model"], [1, 2], np.stack([vector(9)] * 2), version)
    assert caught.value.code == "gallery-changed" and (whole(store)[1] == vector(7)).all()


def test_a_file_that_is_gone_or_another_takes_no_changes(path, store):
    store.add([item(1)])
    for file in path.parent.glob("a.gallery*"):
        file.unlink()
    for action in (
        lambda: store.add([item(2)]),
        store.count,
        lambda: store.changed(0),
        lambda: store.find().__next__(),
    ):
        with pytest.raises(GalleryError) as caught:
            action()
        assert caught.value.code == "gallery-missing"
    with Store(path, META), pytest.raises(GalleryError) as caught:
        store.add([item(2)])
    assert caught.value.code == REBUILT


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_gallery_in_a_folder_that_cannot_be_written_is_read():
    """By a child without root's rights, which cannot reach pytest's own folders."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.gallery")
        with Store(path, META) as store:
            store.add([item(1)])
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        child = os.fork()
        if not child:
            code = 1
            try:
                if os.geteuid() == 0:
                    os.setuid(65534)
                with Store(path) as reader:
                    code = 0 if len(whole(reader)) == reader.count() == 1 else 2
            finally:
                os._exit(code)
        status = os.waitpid(child, 0)[1]
        Path(folder).chmod(0o755)
    assert os.waitstatus_to_exitcode(status) == 0


def test_a_transaction_that_fails_changes_nothing(store):
    store.add([item(1)])
    with pytest.raises(GalleryError, match="unit length"):
        store.add([item(2), NewItem("k3", 2 * vector(3))])
    with pytest.raises(GalleryError, match="4 numbers"):
        store.add([NewItem("k4", np.ones(3, np.float32))])
    with pytest.raises(GalleryError, match="finite"):
        store.add([NewItem("k4", np.full(4, np.nan, np.float32))])
    for wrong in ("", "a\0b", "\ud800", "x" * 5000):
        with pytest.raises(GalleryError, match="key"):
            store.add([NewItem(wrong, vector(1))])
    for data in ({1, 2}, float("nan"), "x" * 70000, "\ud800"):
        with pytest.raises(GalleryError, match="data"):
            store.add([item(5, data=data)])
    assert store.count() == 1 and store.meta()["change"] == 1


def test_a_full_disk_changes_nothing_and_is_told(path, store):
    store.add([item(1)])
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(GalleryError, match="full") as caught:
        store.add([NewItem(f"n{i}", vector(i), thumbnail=b"x" * 30000) for i in range(50)])
    assert "room" in str(caught.value) and store.count() == 1
    store._db.execute("PRAGMA max_page_count = 100000")
    assert store.add([item(2)])


def test_absent_and_foreign_files_are_refused(path, tmp_path):
    with pytest.raises(GalleryError, match="does not exist"):
        Store(path)
    path.write_bytes(b"not SQLite at all" * 1000)
    with pytest.raises(GalleryError, match="not a database"):
        Store(path)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE items (id INTEGER)")
    with pytest.raises(GalleryError, match="another program"):
        Store(other)
    with pytest.raises(GalleryError, match="another program"):
        Store(other, META)
    with pytest.raises(GalleryError, match="cannot be used"):
        Store(tmp_path / "no folder" / "a.gallery", META)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER t AFTER INSERT ON items BEGIN DELETE FROM items; END",
        "CREATE VIEW v AS SELECT * FROM items",
        "CREATE TABLE more (x)",
        "DROP INDEX items_label",
        "ALTER TABLE items ADD COLUMN more TEXT",
        "PRAGMA user_version = 2",
        "PRAGMA application_id = 7",
        "UPDATE meta SET value = 'null' WHERE name = 'model'",
        "UPDATE meta SET value = '{' WHERE name = 'model'",
        "DELETE FROM meta WHERE name = 'model'",
    ],
)
def test_files_with_anything_else_in_them_are_refused(path, statement):
    Store(path, META).close()
    with sqlite3.connect(path) as db:
        db.execute(statement)
    with pytest.raises(GalleryError) as caught:
        Store(path)
    assert caught.value.code == "gallery-foreign"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE vectors SET vector = x'00'",
        "UPDATE vectors SET vector = 'text'",
        "UPDATE vectors SET vector = x'0000c07f0000c07f0000c07f0000c07f'",
        "UPDATE items SET box = '[1, 2]'",
        "UPDATE items SET box = 'no'",
        "UPDATE items SET key = x'ff'",
        "UPDATE items SET label = x'ff'",
        "UPDATE items SET data = '{'",
        "UPDATE meta SET value = '[' WHERE name = 'change'",
        "UPDATE meta SET value = 'null' WHERE name = 'epoch'",
        "DELETE FROM meta WHERE name = 'change'",
    ],
)
def test_values_of_the_wrong_kind_are_errors_of_ours(path, store, statement):
    store.add([item(1, label="a", box=Box(0, 0, 1, 1), data=1)])
    store._db.execute(statement)
    with pytest.raises(GalleryError):
        list(store.differences(0, store.epoch()))
        store.items([1])


def test_damaged_files_raise_nothing_else(path):
    """Bytes are changed at random, also of a file with several pages of each kind."""
    with Store(path, META) as store:
        store.add([item(i, label=str(i % 5), data={"n": i}, thumbnail=bytes(200)) for i in range(400)])
        store.remove(list(range(1, 50)))
        store.compact()
    data, rng = path.read_bytes(), random.Random(7)
    assert len(data) > 4 * 32768
    for number in range(400):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 3, 30, 300))):
            start = rng.randrange(len(data)) if number % 3 else rng.randrange(4096)
            damaged[start] = rng.randrange(256)
        if number % 5 == 0:
            del damaged[rng.randrange(len(data)) :]
        path.write_bytes(damaged)
        for more in ("-wal", "-shm"):
            Path(f"{path}{more}").unlink(missing_ok=True)
        try:
            with Store(path) as store:
                whole(store)
                store.items(list(range(400)))
                list(store.find(labels=["1"]))
                store.states()
                store.add([item(1)])
                store.remove([60, 61])
        except GalleryError:
            continue
