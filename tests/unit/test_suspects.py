"""Likely wrong labels, images unlike their class, classes that are one: by features of which the answer is known."""

from __future__ import annotations

import csv
import re
import sqlite3
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from paddlex_feat.checks import class_structure
from paddlex_feat.checks.class_structure import check_class_of_two, check_classes_alike, check_redundant_gallery
from paddlex_feat.checks.context import CheckSettings, DataSet, Features
from paddlex_feat.checks.feature_cache import cached
from paddlex_feat.checks.image_info import ImageInfo
from paddlex_feat.checks.label_space import LabelSpace
from paddlex_feat.checks.lookalikes import check_lookalikes
from paddlex_feat.checks.nearest_class import NEAREST, TYPICAL, ClassSimilarity
from paddlex_feat.checks.suspects import check_suspects, rank_suspects
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.errors import DatasetError
from paddlex_feat.evaluation.ranking.neighbours import find_neighbours
from paddlex_feat.reports.suspects_table import read_marks, write_suspects

SETTINGS = CheckSettings(64, None, None, 1)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def clusters(seed: int, classes: int = 20, each: int = 10, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Features around a random centre for each class, float32 [N, 32], and the labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(classes * each) // each
    return unit(rng.normal(size=(classes, 32))[labels] + noise * rng.normal(size=(len(labels), 32))), labels


def data_of(rows: np.ndarray, labels: np.ndarray, names: dict[int, str] | None = None) -> DataSet:
    paths = [f"{i}.jpg" for i in range(len(rows))]
    train = ImageList("train", Path("set"), paths, labels.tolist(), list(range(1, len(rows) + 1)), names=names or {})
    empty = {name: ImageList(name, Path("set")) for name in ("gallery", "query")}
    index = {file: i for i, file in enumerate(train.files())}
    return DataSet(Path("set"), {"train": train, **empty}, features=Features(rows, index, "model"))


@pytest.mark.parametrize("count", [3, 100, 700])
def test_neighbours_are_those_of_a_plain_comparison(count, monkeypatch):
    monkeypatch.setattr("paddlex_feat.evaluation.ranking.neighbours._BLOCK_BYTES", 4 * 704 * 50)  # some blocks
    rng = np.random.default_rng(count)
    rows, classes = unit(rng.normal(size=(count, 8))), rng.integers(0, max(2, count // 9), count)
    found = find_neighbours(rows, classes, 3, 4)
    similar = rows @ rows.T
    np.fill_diagonal(similar, -np.inf)
    same = classes[:, None] == classes
    for indices, values, mask, k in (
        (found.own, found.own_similarity, same, 3),
        (found.other, found.other_similarity, ~same, 4),
    ):
        expected = np.where(mask, similar, -np.inf)
        order = np.sort(expected, axis=1)[:, ::-1][:, :k]
        assert np.allclose(values[:, : order.shape[1]], order, atol=1e-6)
        there = indices >= 0
        assert (there == (values > -np.inf)).all()
        rows_of, places = np.nonzero(there)
        assert np.allclose(expected[rows_of, indices[rows_of, places]], values[rows_of, places], atol=1e-6)


@pytest.mark.parametrize("each", [3, 7, 100])  # images of a class; large ones are compared in another way
def test_the_nearest_class_is_that_of_a_plain_comparison(each):
    rows, classes = clusters(1, classes=9, each=each, noise=1.5)
    classes = 10 * classes + 5
    near = find_neighbours(rows, classes, NEAREST, 30)
    own = np.random.default_rng(0).uniform(0, 1, len(rows))
    found = ClassSimilarity(rows, classes).nearest(near, own)
    similar = rows.astype(np.float64) @ rows.T.astype(np.float64)
    asked, labels = min((each + 1) // 2, NEAREST), np.unique(classes)
    means = np.stack([np.sort(similar[:, classes == c], axis=1)[:, -asked:].mean(axis=1) for c in labels], axis=1)
    whole = np.stack([[similar[classes == a][:, classes == b].mean() for b in labels] for a in labels])
    inside = (whole.diagonal() * each - 1) / (each - 1)
    scores = means - own[:, None] - TYPICAL * (whole - inside[:, None])[np.searchsorted(labels, classes)]
    scores[classes[:, None] == labels] = -np.inf
    right = scores.max(axis=1) - found.score < 1e-5
    assert right.mean() > 0.99  # of nine classes five are looked at
    best = np.searchsorted(labels, found.label)
    exact = np.abs(np.take_along_axis(means, best[:, None], axis=1)[:, 0] - found.similarity) < 1e-5
    assert exact.all()


def test_exchanged_labels_come_first_and_alone_are_found():
    for seed in range(5):
        rows, labels = clusters(seed)
        rng = np.random.default_rng(seed)
        wrong = rng.choice(len(rows), 10, replace=False)
        given = labels.copy()
        given[wrong] = (labels[wrong] + rng.integers(1, 20, 10)) % 20
        data = data_of(rows, given, {7: "cat"})
        ranked = rank_suspects(data)
        assert {s.record.position for s in ranked[:10]} == set(wrong.tolist())
        found = [f for f in check_suspects(data, SETTINGS) if f.code == "label-suspect"]
        assert {f.where for f in found} == {f"train.txt:{i + 1}" for i in wrong}
        first = ranked[0]
        assert first.other[0].label == labels[first.record.position] and first.like[0].label == first.record.label
        assert all(len(f.images) == len(f.captions) for f in found)


def test_an_image_unlike_its_class_is_not_called_wrong():
    rows, labels = clusters(0)
    away = unit(np.random.default_rng(9).normal(size=(1, 32)))
    mixed = rows.copy()
    mixed[5] = unit(0.4 * rows[4:5] + away)[0]
    codes = {(f.code, f.where) for f in check_suspects(data_of(mixed, labels), SETTINGS)}
    assert ("image-unlike-class", "train.txt:6") in codes and not any(code == "label-suspect" for code, _ in codes)


def test_clean_labels_give_no_finding_and_alone_images_none():
    rows, labels = clusters(1)
    assert not [f for f in check_suspects(data_of(rows, labels), SETTINGS) if f.code == "label-suspect"]
    assert rank_suspects(data_of(rows[:5], np.arange(5))) == []
    assert rank_suspects(data_of(rows[:5], np.zeros(5, int))) == []
    assert not list(check_suspects(DataSet(Path("set")), SETTINGS))


def test_one_class_under_two_labels_is_found():
    rows, labels = clusters(2)
    given = labels.copy()
    given[(labels == 3) & (np.arange(len(labels)) % 2 == 0)] = 90
    found = list(check_classes_alike(data_of(rows, given), SETTINGS))
    assert len(found) == 1 and " 3 and 90 " in found[0].message
    assert not list(check_classes_alike(data_of(rows, labels), SETTINGS))


@pytest.mark.parametrize(("first", "names", "spaces"), [(0, {}, 2), (0, {0: "cat"}, 1), (50, {}, 1)])
def test_labels_mean_the_same_where_they_have_names_or_are_apart(first, names, spaces):
    rows, labels = clusters(3, classes=4)
    data = data_of(rows[:20], labels[:20], names)
    gallery = ImageList("gallery", Path("set"), [f"g{i}.jpg" for i in range(20)], (labels[20:] - 2 + first).tolist())
    data.lists["gallery"] = gallery
    index = {**data.features.index, **{file: 20 + i for i, file in enumerate(gallery.files())}}
    data.features = Features(rows, index, "model")
    assert len(rank_suspects(data)) == 40
    assert len(data.label_spaces) == spaces and all(isinstance(space, LabelSpace) for space in data.label_spaces)


def test_a_marked_table_is_read_back(tmp_path):
    rows, labels = clusters(4)
    data = data_of(rows, labels, {2: "=cat", 3: "dog"})
    file = tmp_path / "suspects.csv"
    write_suspects(file, rank_suspects(data))
    table = list(csv.DictReader(file.open(newline="", encoding="utf-8")))
    assert len(table) == 200 and [int(row["rank"]) for row in table] == list(range(1, 201))
    for row, action in zip(table, ("drop", "3", "dog", "=cat"), strict=False):
        row["action"] = action
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, table[0].keys())
        writer.writeheader()
        writer.writerows(table)
    marks = read_marks(file, data.lists)
    first = (data.lists["train"].files()[data.lists["train"].paths.index(table[0]["path"])], int(table[0]["label"]))
    assert marks["train", first[0], first[1]] is None  # wherever it is with that label
    assert marks["gallery", first[0], first[1]] is None
    assert [label for (name, *_), label in marks.items() if name == "train"] == [None, 3, 3, 2]
    text = file.read_text()
    file.write_text(text.replace(",", ";"))  # as a spreadsheet of some countries saves it
    assert read_marks(file, data.lists) == marks
    for wrong, told in (
        (text.replace("drop", "droop"), "droop"),
        (text.replace("\ndog,", "\n777,"), "neither drop nor a class"),
        (text.replace(f",{table[0]['path']},", ",elsewhere.jpg,", 1), "no image 'elsewhere.jpg'"),
        (re.sub(r"(?m)^[^,\n]+(?=,\d)", "", text), "empty in all lines"),
        ("a,b\n1,2\n", "no column action"),
        ("", "no column action"),
    ):
        file.write_text(wrong)
        with pytest.raises(DatasetError) as caught:
            read_marks(file, data.lists)
        assert caught.value.code == "suspects-unreadable" and told in caught.value.what


def test_copies_that_only_features_see_are_found():
    rows, labels = clusters(6)
    rows[15] = unit(rows[150:151] + 0.02 * rows[3:4])[0]  # in train and gallery
    rows[21] = unit(rows[22:23] + 0.02 * rows[3:4])[0]  # both in train
    data = data_of(rows[:120], labels[:120])
    gallery = ImageList("gallery", Path("set"), [f"g{i}.jpg" for i in range(80)], labels[120:].tolist())
    data.lists["gallery"] = gallery
    files = [*data.lists["train"].files(), *gallery.files()]
    data.features = Features(rows, {file: i for i, file in enumerate(files)}, "model")
    data.image_info.update({file: ImageInfo(width=9, height=9) for file in files})
    found = {(f.code, f.where) for f in check_lookalikes(data, SETTINGS)}
    assert {("leak-similar", "g30.jpg"), ("copy-similar", "train.txt:23")} <= found and len(found) < 8
    hashes = {files[21]: "00" * 80, files[22]: "00" * 80}
    data.image_info.update({file: ImageInfo(width=9, height=9, phash=text) for file, text in hashes.items()})
    assert ("copy-similar", "train.txt:23") not in {(f.code, f.where) for f in check_lookalikes(data, SETTINGS)}


def test_a_class_that_is_two_is_found():
    rows, labels = clusters(7, noise=0.3)
    given = np.where(labels == 4, 5, labels)
    found = list(check_class_of_two(data_of(rows, given), SETTINGS))
    assert [f.where for f in found] == ["train.txt:41"] and "10 of the 20 images of 5 " in found[0].message
    assert not list(check_class_of_two(data_of(rows, labels), SETTINGS))


def test_gallery_images_beside_nearly_equal_ones_are_counted():
    rows, labels = clusters(8, noise=1.0)
    rows[10:14] = unit(rows[10:11] + 0.05 * np.random.default_rng(0).normal(size=(4, 32)) / 32**0.5)
    data = data_of(rows, labels)
    assert not list(check_redundant_gallery(data, SETTINGS))  # of training images this is no matter
    gallery = ImageList("gallery", Path("set"), data.lists["train"].paths, labels.tolist())
    lists = {"train": ImageList("train", Path("set")), "gallery": gallery, "query": ImageList("query", Path("set"))}
    found = list(check_redundant_gallery(DataSet(Path("set"), lists, features=data.features), SETTINGS))
    assert len(found) == 1 and found[0].message.startswith("3 of 200 gallery images")


def test_features_are_computed_once_and_again_after_damage(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path))
    images, computed = np.random.default_rng(0).integers(0, 256, (6, 4, 4, 3), dtype=np.uint8), []

    class Sums:
        preprocess = None

        def __call__(self, pixels: np.ndarray) -> np.ndarray:
            computed.append(len(pixels))
            return pixels.reshape(len(pixels), -1).astype(np.float32)

    expected = images.reshape(6, -1).astype(np.float32)
    for part, fresh in ((images[:4], [4]), (images, [2]), (images, [])):
        with cached(Sums(), "model") as extract:
            assert np.array_equal(extract(part), expected[: len(part)])
        assert computed == fresh
        computed.clear()
    for damage in ("x'0000803f'", "'text'", "x'00'", "zeroblob(208)", "NULL"):
        with closing(sqlite3.connect(tmp_path / "check_dataset/features_model.sqlite")) as connection, connection:
            connection.execute(f"UPDATE feature SET row = {damage}")
        with cached(Sums(), "model") as extract:
            assert np.array_equal(extract(images), expected)
        assert computed == [6]
        computed.clear()


def test_large_classes_are_divided_without_all_pairs():
    """A class of 40,000 images would have 6 GiB of pairs."""
    rng = np.random.default_rng(1)
    rows = np.concatenate([unit(rng.standard_normal((20_000, 8)) + 5 * centre) for centre in np.eye(8)[:2]])
    tracemalloc.start()
    second, silhouette = class_structure._divide(rows.astype(np.float32))
    assert tracemalloc.get_traced_memory()[1] < 64 * 2**20
    tracemalloc.stop()
    assert silhouette > 0.5 and abs(second[:20_000].mean() - second[20_000:].mean()) > 0.999


def test_a_file_with_two_labels_is_no_witness():
    rows, labels = clusters(4)
    data = data_of(rows, labels)
    train = data.lists["train"]
    train.paths.append(train.paths[0])
    train.labels.append(int(labels[0]) + 1)
    ranked = rank_suspects(data)
    assert len(ranked) == 199 and all(s.record.path != train.paths[0] for s in ranked)
