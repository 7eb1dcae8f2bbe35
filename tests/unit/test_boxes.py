"""Boxes of pictures: the same pixels as the crop in a file of its own, and what the checks say of them."""

import cv2
import numpy as np
import pytest
from PIL import Image
from support.boxes import picture

from paddlex_feat.checks import CHECKS, CheckSettings, DataSet, image_info
from paddlex_feat.checks.inspection import inspect_all
from paddlex_feat.data.augment.augment import Augment
from paddlex_feat.data.images.cache import ImageCache
from paddlex_feat.data.images.decode import read_bgr
from paddlex_feat.data.images.headers import picture_size
from paddlex_feat.data.images.preprocess import Preprocess
from paddlex_feat.data.images.source import Box, ImageSource, grown
from paddlex_feat.data.lists.image_list import ImageList

SETTINGS = CheckSettings(batch_size=4, samples_per_class=None, num_classes=None, workers=1)
BOXES = [Box(3, 5, 60, 70), Box(0, 0, 100, 80), Box(10.4, 10.6, 41.5, 30.5), Box(-5, 60, 20, 200), Box(7, 7, 8, 8)]


def source(path, box, **more):
    return ImageSource(f"{path.name}[{box}]", str(path), box=box, **more)


@pytest.fixture(params=["jpg", "png", "turned.jpg", "gray.png"])
def scene(request, tmp_path):
    path = picture(tmp_path / f"a.{request.param}", 400, 300)
    if request.param == "turned.jpg":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(path).copy().save(path, exif=exif, quality=90)
    elif request.param == "gray.png":
        Image.open(path).convert("L").save(path)
    return path


@pytest.mark.parametrize("box", BOXES, ids=str)
def test_a_box_equals_its_crop_in_a_file_bit_for_bit(scene, tmp_path, box):
    whole = read_bgr(scene)
    left, top, right, bottom = (max(0, round(value)) for value in box)
    crop = tmp_path / "crop.png"
    crop.write_bytes(cv2.imencode(".png", whole[top:bottom, left:right])[1].tobytes())
    expected, boxed = read_bgr(crop), source(scene, box)
    assert np.array_equal(read_bgr(boxed), expected) and read_bgr(boxed).flags.c_contiguous
    cache = ImageCache(2**24)
    for _ in range(2):  # decoded, then from the cache
        assert np.array_equal(cache.read_bgr(boxed, lambda w, h: True), expected)
    assert cache.bytes > 0
    preprocess = Preprocess(size=32)
    assert np.array_equal(preprocess.resize(cv2.cvtColor(read_bgr(boxed), cv2.COLOR_BGR2RGB)),
                          preprocess.resize(cv2.cvtColor(expected, cv2.COLOR_BGR2RGB)))  # fmt: skip
    for crop_kind in ("pad_crop", "random_resized_crop"):
        for reduced in (False, True):  # the crop is a PNG file, so neither is decoded at less than its size
            augment = Augment(crop=crop_kind, reduced_decode=reduced)
            for used in (None, cache):
                pair = [augment.read(p, preprocess, np.random.default_rng(5), used) for p in (boxed, str(crop))]
                assert np.array_equal(*pair)


def test_boxes_of_one_picture_have_pixels_of_their_own_in_the_cache(tmp_path):
    path, cache = picture(tmp_path / "a.png"), ImageCache(2**24)
    boxes = [source(path, box) for box in BOXES[:3]]
    shapes = [cache.read_bgr(box).shape for box in boxes + boxes]
    assert shapes[:3] == shapes[3:] and len(set(shapes)) == 3
    assert cache.read_bgr(str(path)).shape == (80, 100, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp", "ppm"])
def test_the_size_of_a_picture_by_its_header(tmp_path, suffix):
    path = picture(tmp_path / f"a.{suffix}", 300, 200)
    assert picture_size(path) == (300, 200)
    path.write_bytes(b"\0" * 100)
    assert picture_size(path) is None
    with pytest.raises(OSError):
        picture_size(tmp_path)


def test_the_header_behind_a_long_thumbnail(tmp_path):
    path = picture(tmp_path / "a.jpg", 30, 20)
    segment = b"\xff\xed" + (65535).to_bytes(2, "big") + b"x" * 65533
    path.write_bytes(path.read_bytes()[:2] + 3 * segment + path.read_bytes()[2:])
    assert picture_size(path) == (30, 20)


def data_set(tmp_path, sources, labels=None, lists=("train",)):
    """The same images in each of the lists."""
    data = DataSet(tmp_path)
    names = {name: sources if name in lists else [] for name in ("train", "gallery", "query")}
    for name, paths in names.items():
        data.lists[name] = ImageList(name, tmp_path, list(paths), list(labels or [0] * len(paths))[: len(paths)])
    data.image_info = inspect_all(list(dict.fromkeys(sources)), 2)
    return data


def findings(data, *checks):
    return [(f.code, f.where) for spec in CHECKS if spec.name in checks for f in spec.run(data, SETTINGS)]


def test_boxes_partly_outside_empty_and_tiny(tmp_path):
    path = picture(tmp_path / "a.png")
    boxes = [Box(0, 0, 100, 80), Box(-1, 0, 50, 50), Box(50, 50, 101, 60), Box(100, 0, 120, 9), Box(5, 5, 12, 50),
             Box(-0.4, 0, 100.4, 80)]  # fmt: skip
    sources = [source(path, box) for box in boxes]
    data = data_set(tmp_path, [*sources, sources[1], str(path)])
    assert findings(data, "boxes", "images") == [
        ("box-outside", sources[1]),
        ("box-outside", sources[2]),
        ("box-empty", sources[3]),
        ("box-tiny", sources[4]),
    ]
    info = data.image_info[sources[4]]
    assert (info.width, info.height, info.picture) == (7, 45, (100, 80))
    assert data.image_info[str(path)].picture == (0, 0)


def test_boxes_of_a_turned_picture_are_in_pixels_that_are_seen(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 50)).save(tmp_path / "a.jpg", exif=exif)
    inside, outside = (source(tmp_path / "a.jpg", box) for box in (Box(0, 60, 50, 100), Box(60, 0, 100, 50)))
    data = data_set(tmp_path, [inside, outside])
    assert findings(data, "boxes") == [("box-empty", outside)]
    assert [code for code, _ in findings(data, "properties")] == ["image-rotated"]  # once for the picture


def test_a_picture_is_decoded_once_for_its_boxes_and_results_are_kept(tmp_path, monkeypatch):
    paths = [picture(tmp_path / f"{i}.jpg", seed=i) for i in range(3)]
    sources = [source(path, box) for box in BOXES[:3] for path in paths]
    decoded, decode = [], image_info.decode_admitted
    monkeypatch.setattr(image_info, "decode_admitted", lambda *a: decoded.append(a[1]) or decode(*a))
    first = inspect_all(sources, 1)
    assert len(decoded) == 3 and len(first) == 9
    assert inspect_all(sources, 1) == first and len(decoded) == 3
    close = source(paths[0], Box(3.0000001, 5, 60, 70))  # the same text
    assert str(close) == sources[0] and close not in set(paths)
    inspect_all([close], 1)
    assert len(decoded) == 4
    picture(paths[1], seed=9)
    changed = inspect_all(sources, 1)
    assert len(decoded) == 5
    assert [changed[s] == first[s] for s in sources] == [True, False, True] * 3


def test_bytes_within_a_file(tmp_path):
    one, two = (picture(tmp_path / f"{i}.png", 60 + 20 * i, 50, seed=i).read_bytes() for i in range(2))
    (tmp_path / "shard").write_bytes(one + two)
    sources = [
        ImageSource("one", str(tmp_path / "shard"), 0, len(one)),
        ImageSource("two", str(tmp_path / "shard"), len(one), len(two)),
        ImageSource("two[box]", str(tmp_path / "shard"), len(one), len(two), Box(0, 0, 9, 9)),
        ImageSource("three", str(tmp_path / "shard"), len(one), len(two) + 1),
    ]
    for _ in range(2):  # inspected, then from the cache
        info = inspect_all(sources, 1)
        assert [(i.width, i.height, i.error) for i in info.values()] == [
            (60, 50, ""), (80, 50, ""), (9, 9, ""), (0, 0, "image-truncated"),
        ]  # fmt: skip
    assert info[sources[1]].phash == image_info.inspect(str(tmp_path / "1.png")).phash


def test_boxes_of_one_picture_are_no_copies_and_equal_crops_of_two_are(tmp_path):
    one, two = picture(tmp_path / "a.png"), picture(tmp_path / "b.bmp")  # the same pixels
    sources = [
        source(one, BOXES[0]),
        source(one, Box(3.1, 5, 60, 70)),
        source(one, Box(4, 5, 60, 71)),
        source(two, BOXES[0]),
    ]
    data = data_set(tmp_path, sources, [0, 1, 2, 0])
    assert [[r.path for r in group] for group in data.repeated] == [[sources[0], sources[3]]]
    assert findings(data, "labels", "copies") == [("copy-identical", sources[3])]
    near = [f for f in CHECKS if f.name == "near-duplicates"]
    for finding in near[0].run(data, SETTINGS):
        assert finding.where == sources[3]  # of the other picture


def test_boxes_of_one_colour_are_no_copies(tmp_path):
    for name in "ab":
        Image.new("RGB", (50, 50)).save(tmp_path / f"{name}.png")
    sources = [source(tmp_path / f"{name}.png", Box(0, 0, 20, 20)) for name in "ab"]
    data = data_set(tmp_path, sources, [0, 1])
    assert data.repeated == [] and {code for code, _ in findings(data, "contrast")} == {"image-blank"}


def test_the_same_box_in_two_lists_is_a_leak(tmp_path):
    sources = [source(picture(tmp_path / "a.png"), BOXES[0])]
    data = data_set(tmp_path, sources, lists=("train", "query"))
    assert findings(data, "leaks") == [("leak-identical", sources[0])]


def test_copies_between_gallery_and_query_are_of_the_same_box(tmp_path):
    from paddlex_feat.evaluation.matches import count_copies, find_self_pairs

    one, two = picture(tmp_path / "a.png"), picture(tmp_path / "b.png")
    query = ImageList("query", tmp_path, [source(one, BOXES[0])], [0])
    for box, copies in ((BOXES[0], 1), (BOXES[1], 0)):
        gallery = ImageList("gallery", tmp_path, [source(two, box)], [0])
        assert count_copies(query, gallery, find_self_pairs(query, gallery)) == copies


def test_a_margin_grows_a_box_within_its_picture(tmp_path):
    picture = np.arange(60 * 40 * 3, dtype=np.uint8).reshape(40, 60, 3)
    cv2.imwrite(str(tmp_path / "a.png"), picture)
    box = ImageSource("a.png[10,10,30,20]", str(tmp_path / "a.png"), box=Box(10, 10, 30, 20))
    assert np.array_equal(read_bgr(grown(box, 0.5)), picture[5:25, 0:40])
    assert np.array_equal(read_bgr(grown(box, 2)), picture[0:40, 0:60])  # no farther than the picture
    assert grown(box, 0) is box and grown("a.png", 0.5) == "a.png" and str(grown(box, 0.5)) != str(box)
