"""Data sets of the field as they were published: In-shop, Stanford Online Products, CUB-200-2011, Market-1501."""

from __future__ import annotations

import os
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from paddlex_feat.checks.context import CheckSettings, DataSet
from paddlex_feat.checks.runner import check
from paddlex_feat.data.findings import Finding
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import LISTS, find_root, reader_of
from paddlex_feat.data.readers.find import READERS, read_lists
from paddlex_feat.data.readers.published import PUBLISHED
from paddlex_feat.errors import DatasetError, FeatError
from paddlex_feat.evaluation import matches

CASES = int(os.environ.get("PADDLEX_FEAT_FUZZ_CASES", "120"))
SETTINGS = CheckSettings(batch_size=4, samples_per_class=2, num_classes=None, workers=1, decode="none")


def read(root: Path, outside: bool = False) -> tuple[str, dict[str, ImageList], list[Finding]]:
    """Format, lists and findings of the data set below a folder."""
    found = find_root(str(root))
    reader = reader_of(found)
    lists, findings, _ = read_lists(found, reader, LISTS, outside)
    return reader.name, lists, findings


def counts(lists: dict[str, ImageList]) -> dict[str, tuple[int, int]]:
    return {name: (len(records), len(set(records.labels))) for name, records in lists.items()}


def sizes(images: int, classes: int) -> list[int]:
    """Images of each class, which add up to `images`."""
    return [images // classes + (i < images % classes) for i in range(classes)]


def write_in_shop(
    root: Path, parts: dict[str, tuple[int, int, int]], file: str = "Eval/list_eval_partition.txt"
) -> None:
    """Write the list of In-shop: images, classes and the number of the first class of each part."""
    rows = []
    for part, (images, classes, first) in parts.items():
        for i, size in enumerate(sizes(images, classes), first):
            rows += [f"img/WOMEN/Dresses/id_{i:08d}/{part}_{k}_front.jpg   id_{i:08d} {part}" for k in range(size)]
    (root / file).parent.mkdir(parents=True, exist_ok=True)
    (root / "Img" / "img").mkdir(parents=True)
    (root / file).write_text(f"{len(rows)}\nimage_name item_id evaluation_status\n" + "\n".join(rows) + "\n")


def write_products(root: Path, train: tuple[int, int], test: tuple[int, int]) -> None:
    root.mkdir(exist_ok=True)
    number, label = 0, 0
    for name, (images, classes) in (("train", train), ("test", test)):
        rows = ["image_id class_id super_class_id path"]
        for size in sizes(images, classes):
            label += 1
            for k in range(size):
                number += 1
                rows.append(f"{number} {label} {label % 12 + 1} bicycle_final/{label}_{k}.JPG")
        (root / f"Ebay_{name}.txt").write_text("\n".join(rows) + "\n")
    (root / "Ebay_info.txt").write_text("image_id class_id super_class_id path\n")


def write_cub(root: Path, train: int, test: int) -> None:
    (root / "images").mkdir(parents=True)
    names = [f"{i:03d}.Bird_{i}" for i in range(1, 201)]
    images, labels, split = [], [], []
    for i, size in enumerate(sizes(train, 100) + sizes(test, 100)):
        for k in range(size):
            images.append(f"{len(images) + 1} {names[i]}/Bird_{k}_{i}.jpg")
            labels.append(f"{len(images)} {i + 1}")
            split.append(f"{len(images)} {k % 2}")
    lines = {"images": images, "image_class_labels": labels, "train_test_split": split}
    lines["classes"] = [f"{i} {name}" for i, name in enumerate(names, 1)]
    for name, rows in lines.items():
        (root / f"{name}.txt").write_text("\n".join(rows) + "\n")


def write_market(root: Path, files: dict[str, list[str]]) -> None:
    for folder, names in files.items():
        (root / folder).mkdir(parents=True)
        for name in names:
            (root / folder / name).touch()


def small_market(root: Path) -> None:
    train = [f"{i:04d}_c{c}s1_000{c}51_0{i}.jpg" for i in (2, 7) for c in (1, 2)]
    gallery = [f"{i:04d}_c{c}s1_000{c}51_0{k}.jpg" for i in (0, 1, 3) for c in (1, 2) for k in (0, 1)]
    gallery += ["-1_c1s1_000401_03.jpg", "Thumbs.db"]
    query = ["0001_c1s1_001051_00.jpg", "0003_c2s3_001051_00.jpg"]
    write_market(root, {"bounding_box_train": train, "bounding_box_test": gallery, "query": query})


SMALL = {
    "InShop": lambda root: write_in_shop(root, {"train": (8, 3, 1), "query": (4, 2, 9), "gallery": (6, 2, 9)}),
    "StanfordOnlineProducts": lambda root: write_products(root, (8, 3), (9, 3)),
    "CUB-200-2011": lambda root: write_cub(root, 200, 300),
    "Market-1501": small_market,
}


def test_in_shop_has_the_counts_of_its_paper(tmp_path):
    write_in_shop(
        tmp_path, {"train": (25_882, 3_997, 1), "query": (14_218, 3_985, 4_000), "gallery": (12_612, 3_985, 4_000)}
    )
    name, lists, findings = read(tmp_path)
    assert name == "InShop" and findings == []
    assert counts(lists) == {"train": (25_882, 3_997), "gallery": (12_612, 3_985), "query": (14_218, 3_985)}
    assert lists["query"].paths[0] == "Img/img/WOMEN/Dresses/id_00004000/query_0_front.jpg"
    assert lists["train"].names[0] == "id_00000001" and not lists["query"].leave_one_out
    assert set(lists["query"].labels) == set(lists["gallery"].labels)
    assert lists["train"].where(0) == "Eval/list_eval_partition.txt:3"


def test_products_have_the_counts_of_their_paper(tmp_path):
    write_products(tmp_path, (59_551, 11_318), (60_502, 11_316))
    name, lists, findings = read(tmp_path)
    assert name == "StanfordOnlineProducts" and findings == []
    assert counts(lists) == {"train": (59_551, 11_318), "gallery": (60_502, 11_316), "query": (60_502, 11_316)}
    assert lists["query"].leave_one_out and lists["query"].paths == lists["gallery"].paths
    assert lists["train"].labels[0] == 1 and lists["gallery"].labels[-1] == 22_634
    assert (lists["train"].source, lists["query"].source) == ("Ebay_train.txt", "Ebay_test.txt")


def test_cub_has_the_counts_of_papers(tmp_path):
    write_cub(tmp_path, 5_864, 5_924)
    name, lists, findings = read(tmp_path)
    assert name == "CUB-200-2011" and findings == []
    assert counts(lists) == {"train": (5_864, 100), "gallery": (5_924, 100), "query": (5_924, 100)}
    assert lists["query"].leave_one_out
    assert lists["train"].paths[0] == "images/001.Bird_1/Bird_0_0.jpg"
    assert {lists["train"].names[n] for n in set(lists["train"].labels)} == {f"{i:03d}.Bird_{i}" for i in range(1, 101)}


@pytest.mark.parametrize(
    ("name", "images", "people", "junk", "distractors"),
    [
        ("train", 12_936, range(751, 1_502), 0, 0),
        ("gallery", 13_120, range(1, 751), 3_819, 2_793),  # 19,732 files
        ("query", 3_368, range(1, 751), 0, 0),
    ],
)
def test_market_has_the_counts_of_its_paper(name, images, people, junk, distractors, tmp_path):
    """Zheng et al. 2015."""
    each = zip(people, sizes(images, len(people)), strict=True)
    files = [f"{p:04d}_c{k % 6 + 1}s1_{k:06d}_01.jpg" for p, size in each for k in range(size)]
    files += [f"-1_c1s1_{k:06d}_01.jpg" for k in range(junk)] + [
        f"0000_c1s1_{k:06d}_01.jpg" for k in range(distractors)
    ]
    folder = {"train": "bounding_box_train", "gallery": "bounding_box_test", "query": "query"}[name]
    write_market(tmp_path, {folder: files[:1]})
    for file in files[1:]:
        os.link(tmp_path / folder / files[0], f"{tmp_path}/{folder}/{file}")  # much faster than new files
    reader = reader_of(tmp_path, (name,))
    lists, findings, _ = read_lists(tmp_path, reader, (name,), refuse_outside=False)
    assert reader.name == "Market-1501" and [f.code for f in findings] == ["person-junk"] * bool(junk)
    assert not findings or f"{junk:,}" in findings[0].message
    assert counts(lists) == {name: (images + distractors, len(people) + bool(distractors))}
    assert len(lists[name].cameras) == images + distractors and set(lists[name].cameras) <= set(range(1, 7))


@pytest.mark.parametrize("name", SMALL)
def test_a_data_set_is_found_below_and_whichever_lists_are_asked_for(name, tmp_path):
    root = tmp_path / "my sets [数据]" / "copy"
    root.mkdir(parents=True)
    SMALL[name](root)
    for extra in ("README.txt", ".DS_Store", "list.csv"):
        (root / extra).write_text("x,y\n1,2\n")
    found, lists, findings = read(tmp_path)
    assert found == name and all(f.severity == "note" for f in findings)
    reader = READERS.get(name)
    for names in (("train",), ("gallery", "query"), ("gallery",)):
        assert reader_of(root, names).name == name
        some = read_lists(root, reader, names, True).lists
        assert {n: some[n].labels for n in names} == {n: lists[n].labels for n in names}


@pytest.mark.parametrize("name", SMALL)
def test_only_its_own_reader_claims_a_folder(name, tmp_path):
    SMALL[name](tmp_path)
    claims = [spec.name for spec in READERS if not spec.generic and spec.count_lists(tmp_path, LISTS) == len(LISTS)]
    assert claims == [name]


def test_what_looks_alike_is_not_claimed(tmp_path):
    write_cub(tmp_path / "birds", 200, 200)
    with (tmp_path / "birds" / "classes.txt").open("a") as stream:
        stream.write("201 201.Other\n")  # as in NABirds
    (tmp_path / "shop" / "img").mkdir(parents=True)
    other = "2\nimage_pair_name_1 image_pair_name_2 item_id evaluation_status\n"  # Consumer-to-shop
    (tmp_path / "shop" / "list_eval_partition.txt").write_text(other)
    write_market(
        tmp_path / "people", {f: ["cat_c1.jpg", "a.jpg"] for f in ("bounding_box_train", "bounding_box_test", "query")}
    )
    (tmp_path / "products").mkdir()
    for name in ("train", "test"):
        (tmp_path / "products" / f"Ebay_{name}.txt").write_text("path label\na.jpg 1\n")
    for folder in ("birds", "shop", "people", "products"):
        assert [spec.count_lists(tmp_path / folder, LISTS) for spec in PUBLISHED] == [0] * len(PUBLISHED), folder


def test_in_shop_without_an_images_folder_is_not_surely_one(tmp_path):
    folder = tmp_path / "downloads/in_shop"
    write_in_shop(folder, {"train": (8, 3, 1), "query": (4, 2, 9), "gallery": (6, 2, 9)})
    assert READERS.get("InShop").count_lists(folder / "Eval", LISTS) == 2
    assert find_root(str(tmp_path / "downloads")) == folder


def test_damaged_records_are_named_and_the_rest_is_read(tmp_path):
    SMALL["InShop"](tmp_path / "a")
    with (tmp_path / "a/Eval/list_eval_partition.txt").open("a") as stream:
        stream.write("img/x y.jpg id_9 train\nimg/b.jpg id_9 val\nimg/c.jpg\n")
    _, lists, findings = read(tmp_path / "a")
    assert "Img/img/x y.jpg" in lists["train"].paths
    assert [f.where.rpartition(":")[2] for f in findings if f.code == "published-record"] == ["22", "23"]
    assert [f.severity for f in findings if "first line counts 18" in f.message] == ["warning"]

    SMALL["CUB-200-2011"](tmp_path / "b")
    labels = (tmp_path / "b/image_class_labels.txt").read_text().splitlines()
    (tmp_path / "b/image_class_labels.txt").write_text("\n".join(["1 201", "2 x", *labels[3:], "9 9"]))
    _, lists, findings = read(tmp_path / "b")
    bad = [(f.where, f.message) for f in findings if f.code == "published-record"]
    assert [where for where, _ in bad] == ["image_class_labels.txt:500", "images.txt:1", "images.txt:2", "images.txt:3"]
    assert "no class of image 3" in bad[-1][1] and len(lists["train"]) == 197

    SMALL["StanfordOnlineProducts"](tmp_path / "c")
    with (tmp_path / "c/Ebay_test.txt").open("a") as stream:
        stream.write("1 2 3\n5 5 1 ../out.jpg\n")
    _, lists, findings = read(tmp_path / "c", outside=True)
    assert [f.where for f in findings if f.severity == "error"] == ["Ebay_test.txt:11", "Ebay_test.txt:12"]
    assert "../out.jpg" not in lists["query"].paths == lists["gallery"].paths


def test_a_list_without_images_is_an_error(tmp_path):
    SMALL["StanfordOnlineProducts"](tmp_path)
    (tmp_path / "Ebay_train.txt").write_text("image_id class_id super_class_id path\n")
    assert [f.code for f in read(tmp_path)[2] if f.severity == "error"] == ["published-empty"]


def test_market_names_of_other_sets_and_those_that_do_not_fit(tmp_path):
    files = ["0001_c2_f0046182.jpg", "0005_c12_f0051341.jpg", "0007_c3_0001.png", "photo.jpg", "0001_x2.jpg"]
    write_market(tmp_path, {"bounding_box_train": files, "bounding_box_test": files[:2], "query": files[:2]})
    name, lists, findings = read(tmp_path)
    assert name == "Market-1501"
    train = lists["train"]
    assert [train.name_of(label) for label in train.labels] == ["0001", "0005", "0007"]
    assert train.cameras == [2, 12, 3]
    where = [f.where for f in findings if f.code == "person-name"]
    assert where == ["bounding_box_train/0001_x2.jpg", "bounding_box_train/photo.jpg"]


def brute_pairs(query: ImageList, gallery: ImageList) -> list[list[int]]:
    sides = [list(zip(r.labels, r.cameras, strict=True)) for r in (query, gallery)]
    return [[q, g] for q, one in enumerate(sides[0]) for g, other in enumerate(sides[1]) if one == other]


@pytest.mark.parametrize("seed", range(20))
def test_camera_pairs_are_those_of_all_pairs(seed):
    rng = np.random.default_rng(seed)
    lists = []
    for name, size in (("query", rng.integers(1, 20)), ("gallery", rng.integers(1, 40))):
        labels, cameras = (
            rng.integers(0, 4, size).tolist(),
            rng.integers(0, 10**9, 3)[rng.integers(0, 3, size)].tolist(),
        )
        lists.append(
            ImageList(name, Path(), [f"{name}{i}" for i in range(size)], labels, cameras=[c % 3 for c in cameras])
        )
    pairs = matches.excluded_pairs(*lists)
    assert pairs is not None and pairs.dtype == np.int64 and pairs.tolist() == brute_pairs(*lists)
    counted = matches.match_counts(*lists, pairs).tolist()
    assert counted == [
        sum(label == g and camera != c for g, c in zip(lists[1].labels, lists[1].cameras, strict=True))
        for label, camera in zip(lists[0].labels, lists[0].cameras, strict=True)
    ]


def test_pairs_of_both_kinds_are_there_once(tmp_path):
    small_market(tmp_path)
    lists = read(tmp_path)[1]
    both = matches.excluded_pairs(lists["gallery"], lists["gallery"], exclude_self=True)
    assert both is not None and both.tolist() == brute_pairs(lists["gallery"], lists["gallery"])


def test_too_many_camera_pairs_are_an_error_and_do_not_fill_the_memory():
    records = ImageList("query", Path(), ["a"] * 100_000, [1] * 100_000, cameras=[1] * 100_000)
    with pytest.raises(DatasetError) as error:
        matches.find_camera_pairs(records, records)
    assert error.value.code == "camera-pairs"


def test_a_part_of_a_list_keeps_its_cameras(tmp_path):
    small_market(tmp_path)
    records = read(tmp_path)[1]["gallery"]
    assert records.part([3, 0]).cameras == [records.cameras[3], records.cameras[0]]


@pytest.mark.parametrize("name", SMALL)
def test_the_check_takes_the_data_as_they_are_meant(name, tmp_path):
    SMALL[name](tmp_path)
    data, findings = check(tmp_path, SETTINGS)
    codes = Counter(f.code for f in findings if f.severity != "note" and not f.code.startswith("image-"))
    assert codes == {}, findings
    if name != "InShop":
        assert not any(".txt has" in f.message or "gallery.txt" in f.message for f in findings)
    assert len(data.distinct_lists()) == (2 if data.lists["query"].leave_one_out else 3)


def test_leave_one_out_classes_of_one_image_are_not_matched(tmp_path):
    write_products(tmp_path, (8, 3), (3, 3))
    findings = check(tmp_path, SETTINGS)[1]
    assert [f.severity for f in findings if f.code == "query-none-matched"] == ["error"]
    with (tmp_path / "Ebay_test.txt").open("a") as stream:
        stream.write("90 4 1 bicycle_final/other.JPG\n")
    findings = check(tmp_path, SETTINGS)[1]
    assert [f.where for f in findings if f.code == "query-unmatched"] == ["Ebay_test.txt:3", "Ebay_test.txt:4"]


def test_a_query_in_the_gallery_from_its_camera_is_left_out_and_any_other_is_found(tmp_path):
    small_market(tmp_path)
    lists = read(tmp_path)[1]
    lists["query"].paths[0] = lists["gallery"].paths[4]  # 0001_c1: the query's own person and camera
    data = DataSet(tmp_path, lists)
    from paddlex_feat.checks.duplicates import check_query_in_gallery

    assert list(check_query_in_gallery(data, SETTINGS)) == []
    lists["gallery"].cameras[4] = 2
    assert [f.code for f in check_query_in_gallery(DataSet(tmp_path, lists), SETTINGS)] == ["query-in-gallery"]


@pytest.mark.parametrize("name", SMALL)
def test_damaged_files_give_findings_and_no_traceback(name, tmp_path):
    SMALL[name](tmp_path)
    rng = random.Random(name)
    files = sorted(p for p in tmp_path.rglob("*.txt") if p.name not in ("train_test_split.txt", "Ebay_info.txt"))
    originals = {file: file.read_bytes() for file in files}
    reader = READERS.get(name)
    for _ in range(CASES if files else 0):
        file = rng.choice(files)
        data = bytearray(originals[file])
        for _ in range(rng.randint(1, 12)):
            at = rng.randrange(len(data))
            data[at : at + rng.choice((0, 1, 1, 9))] = rng.choice(
                (b"", b"\n", b"\0", b" ", b"\xff\xfe", b"\xe4", b"99999999999", b"\t")
            )
            data = data or bytearray(b"x")
        file.write_bytes(data[: rng.randrange(len(data))] if rng.random() < 0.2 else data)
        try:
            assert reader.count_lists(tmp_path, LISTS) in range(4)
            lists, findings, _ = read_lists(tmp_path, reader, LISTS, rng.random() < 0.5)
            assert set(lists) == set(LISTS) and all(f.where and f.message and f.fix for f in findings)
            assert all(len(r.labels) == len(r.paths) == len(r.lines) for r in lists.values())
        except FeatError:
            pass
        file.write_bytes(originals[file])
