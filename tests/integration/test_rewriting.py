"""Conversion and split: what they write."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.datasets import CONVERT, SPLIT, copied, labelme_set
from support.runs import run_here

from paddlex_feat.data.converters import labelme
from paddlex_feat.data.lists import split
from paddlex_feat.data.readers import LISTS
from paddlex_feat.data.readers.shitu_rec import read_list
from paddlex_feat.errors import DatasetError

shares = (
    st.tuples(st.integers(1, 98), st.integers(1, 98)).filter(lambda p: sum(p) < 100).map(lambda p: (*p, 100 - sum(p)))
)


@settings(max_examples=200, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=25),
    percents=shares,
    by=st.sampled_from(["image", "class"]),
    seed=st.integers(0, 3),
)
def test_a_split_is_whole_repeatable_and_leaves_no_query_without_a_match(sizes, percents, by, seed):
    labels = np.repeat(np.arange(len(sizes)) * 3, sizes).tolist()
    parts = split.random_split(labels, percents, by, seed)
    assert sorted(i for part in parts.values() for i in part) == list(range(len(labels)))
    assert parts == split.random_split(labels, percents, by, seed)
    classes = {name: {labels[i] for i in parts[name]} for name in LISTS}
    assert classes["query"] <= classes["gallery"]
    if by == "class":
        assert not classes["train"] & (classes["gallery"] | classes["query"])


def test_a_split_meets_its_percentages_class_by_class():
    labels = [c for c in range(50) for _ in range(20)]
    parts = split.random_split(labels, (70, 20, 10), "image", 0)
    for name, each in (("train", 14), ("gallery", 4), ("query", 2)):
        assert set(Counter(labels[i] for i in parts[name]).values()) == {each}
    parts = split.random_split(labels, (60, 30, 10), "class", 0)
    assert [len(parts[name]) for name in LISTS] == [600, 300, 100]
    assert split.random_split(labels, (70, 20, 10), "image", 1) != split.random_split(labels, (70, 20, 10), "image", 0)


def test_small_classes_add_up():
    """Rounding is carried from class to class: 100 classes of 3 images at 60/20/20 come near 180/60/60."""
    parts = split.random_split([c for c in range(100) for _ in range(3)], (60, 20, 20), "image", 0)
    assert abs(len(parts["train"]) - 180) <= 30 and len(parts["gallery"]) >= len(parts["query"]) > 20


# LabelMe


class Annotated:
    """A LabelMe folder that a test adds to."""

    def __init__(self, root: Path):
        self.root = root
        (root / "annotations").mkdir(parents=True)
        (root / "label.txt").write_text("cat\ndog\nbird\n")

    def image(self, name: str, seed: int = 0) -> None:
        path = self.root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8))

    def add(self, name: str, image_path, flags=None, **rest) -> None:
        content = {"version": "5.5.0", "imagePath": image_path, "flags": flags or {}, "shapes": [], **rest}
        path = self.root / "annotations" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content))

    def converted(self) -> tuple[dict[str, int], dict[str, str]]:
        """{image: label}, {where: code} of the findings."""
        result = labelme.convert(self.root)
        return dict(zip(result.paths, result.labels, strict=True)), {f.where: f.code for f in result.findings}


@pytest.fixture
def annotated(tmp_path) -> Annotated:
    return Annotated(tmp_path / "set")


def only(name: str) -> dict[str, bool]:
    return {"cat": False, "dog": False, "bird": False, name: True}


@pytest.mark.parametrize(
    "image_path",
    ["../images/sub/a.png", "..\\images\\sub\\a.png", "images/sub/a.png", "sub/a.png",
     "C:\\me\\pictures\\a.png", "/home/me/sub/a.png"],
)  # fmt: skip
def test_any_form_of_image_path(annotated, image_path):
    annotated.image("sub/a.png")
    annotated.add("a.json", image_path, only("dog"))
    assert annotated.converted() == ({"images/sub/a.png": 1}, {})


def test_a_missing_image_is_not_replaced_by_another_of_its_name(annotated):
    annotated.image("dog/01.png")
    annotated.add("cat/01.json", "../../images/cat/01.png", only("cat"))
    annotated.add("dog/01.json", "../../images/dog/01.png", only("dog"))
    assert annotated.converted() == ({"images/dog/01.png": 1}, {"annotations/cat/01.json": "labelme-image-missing"})


def test_an_exact_path_counts_more_than_a_name(annotated):
    annotated.image("dog/01.png")
    annotated.add("1.json", "C:/me/cat/01.png", only("cat"))
    annotated.add("2.json", "../images/dog/01.png", only("dog"))
    assert annotated.converted() == ({"images/dog/01.png": 1}, {"annotations/1.json": "labelme-conflict"})


def test_gbk_annotations_and_names(annotated):
    annotated.image("图.png")
    (annotated.root / "label.txt").write_bytes("猫\r\n狗\r\n猫\r\n".encode("gbk"))
    content = json.dumps({"imagePath": "../images/图.png", "flags": {"狗": True}}, ensure_ascii=False)
    (annotated.root / "annotations/图.json").write_bytes(content.encode("gbk"))
    assert annotated.converted() == ({"images/图.png": 1}, {"label.txt": "labelme-name-twice"})


def test_image_names_that_a_list_cannot_hold_are_left_out(annotated):
    annotated.image("a.png")
    annotated.image("b 5\nevil.png")
    annotated.add("a.json", "a.png", only("cat"))
    annotated.add("b.json", "b 5\nevil.png", only("cat"))
    assert annotated.converted() == ({"images/a.png": 0}, {"annotations/b.json": "labelme-image-name"})


def test_the_last_components_decide_among_equal_names_else_it_is_ambiguous(annotated):
    for folder in ("one", "two"):
        annotated.image(f"{folder}/a.png")
    annotated.add("1.json", "D:/x/one/a.png", only("cat"))
    annotated.add("2.json", "D:/x/a.png", only("cat"))
    images, findings = annotated.converted()
    assert images == {"images/one/a.png": 0}
    assert findings == {
        "annotations/2.json": "labelme-ambiguous-image",
        "images/two/a.png": "labelme-image-without-class",
    }


@pytest.mark.parametrize(
    ("flags", "rest", "label"),
    [
        (only("bird"), {}, 2),
        ({}, {"shapes": [{"label": "dog"}, {"label": "dog"}]}, 1),
        ({"cat": False}, {"shapes": [{"label": "x", "flags": {"dog": True}}]}, 1),
        ({"cat": True}, {"shapes": [{"label": "dog"}]}, 0),
    ],
)
def test_where_the_class_is_named(annotated, flags, rest, label):
    annotated.image("a.png")
    annotated.add("a.json", "../images/a.png", flags, **rest)
    assert annotated.converted() == ({"images/a.png": label}, {})


def test_annotations_that_cannot_be_used_are_named_with_the_reason(annotated):
    for name in ("good", "none", "several", "shapes", "unknown", "lonely", "twice"):
        annotated.image(f"{name}.png")
    annotated.add("good.json", "../images/good.png", only("cat"))
    annotated.add("none.json", "../images/none.png", {"cat": False})
    annotated.add("several.json", "../images/several.png", {"cat": True, "dog": True})
    annotated.add("shapes.json", "../images/shapes.png", shapes=[{"label": "cat"}, {"label": "dog"}])
    annotated.add("unknown.json", "../images/unknown.png", only("fish"))
    annotated.add("absent.json", "../images/absent.png", only("cat"))
    annotated.add("no_path.json", None, only("cat"))
    annotated.add("twice_1.json", "../images/twice.png", only("cat"))
    annotated.add("twice_2.json", "../images/twice.png", only("dog"))
    (annotated.root / "annotations/notes.txt").write_text("mine")
    (annotated.root / "annotations/broken.json").write_text("{")
    (annotated.root / "annotations/list.json").write_text("[]")
    images, findings = annotated.converted()
    assert images == {"images/good.png": 0, "images/twice.png": 0}
    assert findings == {
        "annotations/none.json": "labelme-no-class",
        "annotations/several.json": "labelme-several-classes",
        "annotations/shapes.json": "labelme-several-classes",
        "annotations/unknown.json": "labelme-unknown-class",
        "annotations/absent.json": "labelme-image-missing",
        "annotations/no_path.json": "labelme-no-image",
        "annotations/twice_2.json": "labelme-conflict",
        "annotations/notes.txt": "labelme-other-file",
        "annotations/broken.json": "labelme-not-json",
        "annotations/list.json": "labelme-format",
        **{
            f"images/{n}.png": "labelme-image-without-class"
            for n in ("none", "several", "shapes", "lonely")
        },
    }  # fmt: skip


def test_class_names_come_from_flags_txt_or_from_the_annotations(annotated):
    annotated.image("a.png")
    annotated.add("a.json", "a.png", {"zebra": True})
    (annotated.root / "label.txt").rename(annotated.root / "flags.txt")
    (annotated.root / "flags.txt").write_text("ant\nzebra\n")
    assert annotated.converted() == ({"images/a.png": 1}, {})
    (annotated.root / "flags.txt").unlink()
    assert annotated.converted() == ({"images/a.png": 0}, {str(annotated.root): "labelme-no-names"})


def test_nothing_usable_is_an_error_with_every_reason(annotated, tmp_path):
    annotated.add("a.json", "absent.png", only("cat"))
    done = check_mode(annotated.root, tmp_path / "out", *CONVERT)
    result = json.loads((tmp_path / "out/check_dataset_result.json").read_text())
    assert done.returncode == 1 and "No annotation could be used" in done.stderr
    assert [f["code"] for f in result["findings"]] == ["labelme-image-missing"]


@pytest.mark.parametrize(
    ("sizes", "percents", "by"),
    [([9], (70, 20, 10), "class"), ([9, 9], (70, 20, 10), "class"), ([1] * 10, (70, 20, 10), "image")],
)
def test_a_draw_that_leaves_nothing_to_train_or_evaluate_is_refused(sizes, percents, by):
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist()
    with pytest.raises(DatasetError) as caught:
        split.validate_split(split.random_split(labels, percents, by, 0), labels)
    assert caught.value.code == "split-impossible"


FIELDS = ["imagePath", "flags", "shapes", "label", "cat"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=9), inner, max_size=5)
    ),
    max_leaves=20,
)


@settings(max_examples=200, deadline=None)
@given(content=JSON)
def test_arbitrary_json_gives_findings_and_changes_nothing(tmp_path_factory, content):
    annotated = Annotated(tmp_path_factory.mktemp("any") / "set")
    annotated.image("a.png")
    data = json.dumps(content).encode()
    (annotated.root / "annotations/x.json").write_bytes(data)
    annotated.add("a.json", "a.png", only("cat"))
    result = labelme.convert(annotated.root)
    assert "images/a.png" in result.paths
    assert (annotated.root / "annotations/x.json").read_bytes() == data


# The commands of the manual


def check_mode(data: Path, output: Path, *overrides: str):
    settings_ = (f"Global.dataset_dir={data}", f"Global.output={output}", "Global.mode=check_dataset", *overrides)
    return run_here("-c", "PP-ShiTuV2_rec", *(w for s in settings_ for w in ("-o", s)))


def small(overrides: tuple[str, ...] = ()) -> tuple[str, ...]:
    return ("Train.batch_size=8", "Train.samples_per_class=2", "Train.input_size=16", *overrides)


@pytest.fixture
def labelme_faces(tmp_path, faces) -> Path:
    return labelme_set(tmp_path / "labelme", faces)


def test_mode_check_dataset_converts_and_keeps_existing_lists(labelme_faces, tmp_path):
    (labelme_faces / "train.txt").write_text("mine")
    done = check_mode(labelme_faces, tmp_path / "out", *CONVERT, *small())
    assert done.returncode == 0, done.stderr
    attributes = json.loads((tmp_path / "out/check_dataset_result.json").read_text())["attributes"]
    assert [attributes[f"{name}_samples"] for name in LISTS] == [40, 24, 16]
    assert (labelme_faces / "train.txt.bak").read_text() == "mine" and "Converted 80" in done.stderr
    before = [(labelme_faces / f"{name}.txt").read_bytes() for name in LISTS]
    assert check_mode(labelme_faces, tmp_path / "out", *CONVERT, *small()).returncode == 0
    assert [(labelme_faces / f"{name}.txt").read_bytes() for name in LISTS] == before  # seeded
    assert [file.name for file in labelme_faces.glob("train.txt.bak*")] == ["train.txt.bak"]  # nothing was lost


def test_mode_check_dataset_splits(faces, tmp_path):
    before = copied(faces, tmp_path / "set")
    done = check_mode(tmp_path / "set", tmp_path / "out", *SPLIT, *small())
    assert done.returncode == 0, done.stderr
    assert "Split 400 images" in done.stderr and "[split-mixes-labels]" in done.stderr
    attributes = json.loads((tmp_path / "out/check_dataset_result.json").read_text())["attributes"]
    assert [attributes[f"{name}_samples"] for name in LISTS] == [280, 80, 40]
    assert {name: (tmp_path / f"set/{name}.txt.bak").read_bytes() for name in LISTS} == before
    lines = sorted(b"".join((tmp_path / f"set/{name}.txt").read_bytes() for name in LISTS).split(b"\n"))
    assert lines == sorted(b"".join(before.values()).split(b"\n"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (SPLIT[:3], "add up to 100"),
        ((*SPLIT, "CheckDataset.split.query_percent=11"), "add up to 100"),
        (CONVERT[:1], "src_dataset_type"),
        (CONVERT, "LabelMe's annotations"),
    ],
)
def test_what_is_missing_is_said_and_nothing_is_touched(faces, tmp_path, overrides, message):
    before = copied(faces, tmp_path / "set")
    done = check_mode(tmp_path / "set", tmp_path / "out", *overrides)
    assert done.returncode == 1 and message in done.stderr and "Traceback" not in done.stderr
    assert sorted(p.name for p in (tmp_path / "set").iterdir()) == sorted(["images", *(f"{n}.txt" for n in before)])


def test_lists_with_bad_lines_are_not_split(tmp_path, faces):
    copied(faces, tmp_path / "set")
    with (tmp_path / "set/query.txt").open("a") as stream:
        stream.write("bad\n")
    done = check_mode(tmp_path / "set", tmp_path / "out", *SPLIT)
    assert done.returncode == 1 and "query.txt:181" in done.stderr
    assert not (tmp_path / "set/train.txt.bak").exists()
    assert len(read_list(tmp_path / "set", "query")[0]) == 180
