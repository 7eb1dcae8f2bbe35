"""A data set for every kind of finding, made by the test itself."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.runs import ROOT

from paddlex_feat.checks import CHECKS, CheckSpec, duplicates, image_info, inspection
from paddlex_feat.checks.context import CheckSettings
from paddlex_feat.checks.duplicates import MAX_HAMMING_128, MAX_HAMMING_512, near_pairs
from paddlex_feat.checks.runner import check
from paddlex_feat.data import findings as findings_module
from paddlex_feat.data.findings import Finding
from paddlex_feat.data.images.decode import read_rgb
from paddlex_feat.data.images.limits import MAX_PIXELS
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.data.readers import LISTS, find_root
from paddlex_feat.data.readers.shitu_rec import read_list
from paddlex_feat.errors import ImageError
from paddlex_feat.reports import dataset_html, dataset_pictures

PACKAGE = ROOT / "paddlex_feat"
SETTINGS = CheckSettings(batch_size=4, samples_per_class=2, num_classes=None, workers=2, input_size=16)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", str(tmp_path / "cache"))


def picture(seed: int, size: tuple[int, int] = (48, 40)) -> np.ndarray:
    """A smooth random image, uint8 [H, W, 3]; other seeds look entirely different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


class Scene:
    """A sound data set that a test adds to: three train classes of two images, one query, two gallery images."""

    def __init__(self, root: Path):
        self.root = root
        self.lines: dict[str, list[str]] = {"train": [], "gallery": [], "query": []}
        for i in range(6):
            self.add("train", f"t{i}.png", i // 2, picture(i))
        self.add("gallery", "g0.png", 0, picture(10))
        self.add("gallery", "g1.png", 1, picture(11))
        self.add("query", "q0.png", 0, picture(12))
        self.add("query", "q1.png", 1, picture(13))

    def add(self, name: str, file: str, label: int, content: np.ndarray | bytes | None = None) -> str:
        """Add a line, with its file where content is given; return file:line."""
        if content is not None:
            data = content if isinstance(content, bytes) else cv2.imencode(".png", content)[1].tobytes()
            (self.root / file).parent.mkdir(exist_ok=True)
            (self.root / file).write_bytes(data)
        self.lines[name].append(f"{file} {label}")
        return f"{name}.txt:{len(self.lines[name])}"

    def findings(self, **changes) -> list[Finding]:
        for name, lines in self.lines.items():
            (self.root / f"{name}.txt").write_text("\n".join(lines) + "\n")
        return check(self.root, replace(SETTINGS, **changes))[1]

    def found(self, **changes) -> list[tuple[str, str, str]]:
        return [(f.code, f.severity, f.where) for f in self.findings(**changes)]


@pytest.fixture
def scene(tmp_path) -> Scene:
    (tmp_path / "set").mkdir()
    return Scene(tmp_path / "set")


def save(root: Path, name: str, **options) -> bytes:
    image = Image.fromarray(picture(50)[..., ::-1])
    path = root / name
    {
        "animated.webp": lambda: image.save(path, save_all=True, append_images=[image.rotate(90, expand=False)]),
        "pages.tif": lambda: image.save(path, save_all=True, append_images=[image]),
        "cmyk.jpg": lambda: image.convert("CMYK").save(path),
        "deep.png": lambda: cv2.imwrite(str(path), picture(51).astype(np.uint16) * 257),
        "alpha.png": lambda: image.convert("RGBA").save(path),
        "turned.jpg": lambda: image.save(path, exif=exif(6)),
    }[name]()
    return path.read_bytes()


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def test_a_sound_data_set_has_no_findings(scene):
    assert scene.found() == []


@pytest.mark.parametrize(
    ("file", "code", "severity"),
    [
        ("animated.webp", "image-animated", "warning"),
        ("pages.tif", "image-multi-page", "warning"),
        ("cmyk.jpg", "image-cmyk", "warning"),
        ("deep.png", "image-16-bit", "warning"),
        ("alpha.png", "image-alpha", "warning"),
        ("turned.jpg", "image-rotated", "note"),
    ],
)
def test_images_of_special_kinds(scene, file, code, severity):
    where = scene.add("train", file, 0, save(scene.root, file))
    assert scene.found() == [(code, severity, where)]


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".bmp", ".tif", ".pgm"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_truncated_files_of_every_format(scene, suffix, share):
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (60, 60, 3), dtype=np.uint8)
    data = cv2.imencode(suffix, noise[..., 0] if suffix == ".pgm" else noise)[1].tobytes()
    where = scene.add("query", f"cut{suffix}", 0, data[: int(len(data) * share)])
    found = scene.found()
    assert (
        len(found) == 1 and found[0][0] in ("image-truncated", "image-undecodable") and found[0][1:] == ("error", where)
    )


def test_a_decompression_bomb_is_refused_by_its_header_and_not_decoded(scene, monkeypatch):
    import struct
    import zlib

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")
    assert MAX_PIXELS < 60000 * 60000
    where = scene.add("train", "bomb.png", 0, bomb)
    decoded = []
    decode = image_info.decode_admitted
    monkeypatch.setattr(
        image_info, "decode_admitted", lambda data, name, *more: decoded.append(name) or decode(data, name, *more)
    )
    assert scene.found() == [("image-too-large", "error", where)]
    assert "bomb.png" not in {Path(name).name for name in decoded}


def test_files_that_are_no_images(scene):
    (scene.root / "folder.jpg").mkdir()
    expected = [
        ("image-empty", "error", scene.add("train", "empty.jpg", 0, b"")),
        ("image-undecodable", "error", scene.add("train", "text.jpg", 0, b"hello")),
        ("image-missing", "error", scene.add("gallery", "absent.jpg", 0)),
        ("image-is-folder", "error", scene.add("query", "folder.jpg", 0)),
    ]
    assert scene.found() == expected


def test_paths_that_leave_the_folder_or_are_absolute(scene, tmp_path):
    cv2.imwrite(str(tmp_path / "outside.png"), picture(60))
    cv2.imwrite(str(tmp_path / "other.png"), picture(61))
    expected = [
        ("path-leaves", "warning", scene.add("train", "../outside.png", 0)),
        ("path-absolute", "warning", scene.add("query", str(tmp_path / "other.png"), 0)),
    ]
    assert scene.found() == expected


def test_small_images_are_one_finding(scene):
    where = scene.add("query", "tiny.png", 0, picture(70, (9, 30)))
    assert scene.found() == [("image-small", "warning", where)]
    message = next(f.message for f in scene.findings(input_size=45))
    assert "11 of 11 images" in message and "30 x 9" in message


def test_the_same_line_twice(scene):
    where = scene.add("train", "t0.png", 0)
    assert scene.found() == [("line-repeated", "warning", where)]


@pytest.mark.parametrize("file", ["t0.png", "copy.png"])
def test_one_image_with_two_labels(scene, file):
    where = scene.add("train", file, 1, picture(0))
    assert scene.found() == [("label-conflict", "error", where)]


def test_gallery_and_query_share_one_system_of_labels_train_need_not(scene):
    scene.lines["train"][0] = "t0.png 7"
    scene.lines["train"][1] = "t1.png 7"
    where = scene.add("query", "copy.png", 1, picture(10))  # gallery: label 0
    assert ("label-conflict", "error", where) in scene.found()


def test_identical_and_near_identical_copies_in_a_list(scene):
    where = scene.add("train", "copy.png", 0, picture(0))
    assert scene.found() == [("copy-identical", "warning", where)]
    scene.lines["train"].pop()
    scene.add("train", "near.jpg", 0, cv2.imencode(".jpg", picture(0), [cv2.IMWRITE_JPEG_QUALITY, 60])[1].tobytes())
    assert scene.found() == [("copy-near", "note", "train.txt:7")]


def test_near_identical_images_with_two_labels(scene):
    brighter = np.clip(picture(0).astype(int) + 12, 0, 255).astype(np.uint8)
    where = scene.add("train", "near.png", 1, brighter)
    assert scene.found() == [("label-conflict-near", "warning", where)]


def test_what_is_evaluated_must_not_be_trained_on(scene):
    expected = [
        ("leak-identical", "warning", scene.add("query", "same.png", 0, picture(0))),
        ("leak-near", "warning", scene.add("gallery", "resized.png", 1, cv2.resize(picture(2), (80, 96)))),
    ]
    assert scene.found() == expected


def test_a_query_in_the_gallery_finds_itself(scene):
    where = scene.add("query", "g0.png", 0)
    assert scene.found() == [("query-in-gallery", "warning", where)]
    scene.lines["query"] = ["g0.png 0", "g1.png 1"]
    assert scene.found() == [("query-in-gallery", "error", f"query.txt:{i}") for i in (1, 2)]


def test_labels_of_query_and_gallery(scene):
    where = scene.add("query", "new.png", 9, picture(80))
    scene.add("gallery", "idle.png", 8, picture(81))
    assert scene.found() == [("query-unmatched", "warning", where), ("gallery-not-queried", "note", "gallery.txt")]
    scene.lines["query"] = [line.split()[0] + " 77" for line in scene.lines["query"]]
    assert ("query-none-matched", "error", "query.txt") in scene.found()


def test_classes_against_classifier_and_sampler(scene):
    assert scene.found(num_classes=2) == [("num-classes-too-small", "error", "train.txt")]
    assert scene.found(num_classes=9) == [("num-classes-larger", "note", "train.txt")]
    assert scene.found(batch_size=8)[0] == ("sampler-batch", "error", "train.txt")
    assert "batch_size=6" in scene.findings(batch_size=8)[0].fix
    scene.lines["train"].pop()
    assert scene.found() == [("class-small", "warning", "train.txt")]
    assert scene.found(samples_per_class=None) == []
    scene.lines["train"] = ["t0.png 3", "t1.png 3"]
    assert ("train-one-class", "error", "train.txt") in scene.found()


def test_an_extreme_tail(scene):
    for i in range(110):
        scene.add("train", f"many{i}.png", 0, picture(1000 + i))
    assert ("class-tail", "warning", "train.txt") in scene.found()


def test_strict_makes_errors_of_warnings_but_not_of_notes(scene):
    scene.add("train", "t0.png", 0)
    scene.add("train", "turned.jpg", 0, save(scene.root, "turned.jpg"))
    assert [s for _, s, _ in scene.found(strict=True)] == ["note", "error"]


def test_lists_that_cannot_be_read(scene):
    scene.found()
    (scene.root / "train.txt").unlink()
    (scene.root / "gallery.txt").write_bytes(b"\n \n")
    (scene.root / "query.txt").write_bytes(b"q0.png 0\nx\nq1.png one\n\xff\xff 1\n")
    codes = [(f.code, f.where) for f in check(scene.root, SETTINGS)[1]]
    assert codes == [("list-missing", "train.txt"), ("list-empty", "gallery.txt"), ("list-encoding", "query.txt:4")]


@pytest.mark.parametrize(
    ("data", "codes", "count"),
    [
        (b"a.jpg 1\rb.jpg 2\r\nc.jpg 3", [], 3),
        (b"a\0b.jpg 1\n", ["line-format"], 0),
        (b"a.jpg " + b"1" * 25, ["label-not-integer"], 0),
        ("\u3000\n".encode("gbk"), ["list-gbk", "list-empty"], 0),
        (b"a.jpg 1\x1b[31m 2\n", ["line-format"], 0),
    ],
)
def test_odd_lines(tmp_path, data, codes, count):
    (tmp_path / "train.txt").write_bytes(data)
    records, findings = read_list(tmp_path, "train")
    assert [f.code for f in findings] == codes and len(records) == count


def test_a_path_in_two_spellings_is_one_file(scene):
    where = scene.add("train", "./t0.png", 0)
    for decode in ("all", "none"):
        assert scene.found(decode=decode) == [("line-repeated", "warning", where)]
    scene.lines["train"].pop()
    (scene.root / "sub").mkdir()
    where = scene.add("query", "sub/../g0.png", 0)
    assert scene.found(decode="none") == [("query-in-gallery", "warning", where)]


def test_a_pipe_in_a_list_does_not_hang(scene):
    os.mkfifo(scene.root / "pipe.jpg")
    where = scene.add("train", "pipe.jpg", 0)
    assert scene.found() == [("image-unreadable", "error", where)]
    with pytest.raises(ImageError):
        read_rgb(scene.root / "pipe.jpg")


def test_what_may_become_readable_is_not_remembered(scene, monkeypatch):
    read = os.read
    monkeypatch.setattr(os, "read", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    info = inspection.inspect_all([str(scene.root / "t0.png")], 1)
    assert [f.error for f in info.values()] == ["image-unreadable"]
    monkeypatch.setattr(os, "read", read)
    assert [f.error for f in inspection.inspect_all([str(scene.root / "t0.png")], 1).values()] == [""]


def test_a_jpeg_whose_rest_is_zeros_is_truncated(scene):
    data = cv2.imencode(".jpg", picture(90, (200, 200)))[1].tobytes()
    where = scene.add("train", "zeros.jpg", 0, data[: len(data) // 2] + bytes(len(data) // 2))
    scene.add("train", "padded.jpg", 0, cv2.imencode(".jpg", picture(91))[1].tobytes() + bytes(100))
    assert scene.found()[0][0] in ("image-truncated", "image-undecodable") and [w for *_, w in scene.found()] == [where]


@pytest.mark.parametrize("suffix", [".png", ".tif", ".ppm", ".pgm"])
def test_16_bits_in_every_format(scene, suffix):
    deep = picture(92).astype(np.uint16) * 257
    data = cv2.imencode(suffix, deep[..., 0] if suffix == ".pgm" else deep)[1].tobytes()
    where = scene.add("train", f"deep{suffix}", 0, data)
    assert scene.found() == [("image-16-bit", "warning", where)]


def test_a_photograph_with_a_preview_is_not_animated(scene):
    image = Image.fromarray(picture(93))
    image.save(scene.root / "phone.jpg", "MPO", save_all=True, append_images=[image.resize((20, 20))])
    scene.add("train", "phone.jpg", 0)
    assert scene.found() == []


def test_different_objects_on_a_plain_background_are_not_look_alikes(scene):
    for label, draw in enumerate(
        [
            lambda i: cv2.circle(i, (128, 128), 80, (40, 40, 40), -1),
            lambda i: cv2.rectangle(i, (50, 50), (206, 206), (40, 40, 40), -1),
            lambda i: cv2.putText(i, "AB", (40, 170), cv2.FONT_HERSHEY_SIMPLEX, 4, (40, 40, 40), 20),
        ]
    ):
        scene.add("train", f"object{label}.png", label, draw(np.full((256, 256, 3), 255, np.uint8)))
    assert scene.found() == []


def test_extreme_shapes_and_names_do_not_break_the_report(scene, tmp_path):
    scene.add("train", "thin.png", 0, picture(94, (1, 1000)))
    scene.add("train", "wide.jpg", 0, cv2.imencode(".png", picture(95, (2, 70000)))[1].tobytes())
    scene.add("train", "a" * 240 + ".png", 0, picture(96))
    name = os.fsdecode(b"b\xff.png")
    (scene.root / name).write_bytes(b"")
    scene.findings()
    data, findings = check(scene.root, SETTINGS)
    findings.append(Finding("image-empty", "error", name, f"<script>{name}", "x", (str(scene.root / "thin.png"),)))
    samples = dataset_pictures.write_samples(data.lists, tmp_path / "demo")
    assert len(samples["train"]) == 9
    files = {key: [tmp_path / "demo" / s for s in names] for key, names in samples.items()}
    data.root = Path(name)
    dataset_html.write_report(tmp_path / "report.html", data, findings, [], files, "<script>")
    page = (tmp_path / "report.html").read_text()
    assert "<script" not in page and "&lt;script&gt;" in page and page.count("<img") >= 14


def test_samples_of_one_name_are_kept_apart(scene, tmp_path):
    scene.add("gallery", "../set/t0.png", 1)
    cv2.imwrite(str(tmp_path / "t0.png"), picture(97))
    scene.add("query", "../t0.png", 0)
    scene.findings()
    samples = dataset_pictures.write_samples(check(scene.root, SETTINGS)[0].lists, tmp_path / "demo")
    named = [s for names in samples.values() for s in names if Path(s).name.startswith("t0")]
    assert len(named) == len(set(named)) == 3 and all((tmp_path / "demo" / s).is_file() for s in named)


@pytest.mark.parametrize(("decode", "missing"), [("all", 601), ("sample", 500), ("none", 0)])
def test_how_many_images_are_decoded(scene, decode, missing):
    scene.lines["query"] = ["q0.png 0"] + [f"absent{i}.png 0" for i in range(601)]
    count = sum(code == "image-missing" for code, _, _ in scene.found(decode=decode))
    assert count in ((missing, missing - 1) if decode == "sample" else (missing,))  # q0.png may be in the sample


def test_a_second_check_reads_only_what_has_changed(scene, monkeypatch):
    assert scene.found() == []
    read = []
    inspect = image_info.inspect
    monkeypatch.setattr(image_info, "inspect", lambda path, *more: read.append(Path(path).name) or inspect(path, *more))
    assert scene.found() == [] and read == []
    (scene.root / "t3.png").write_bytes(b"damaged")
    assert [code for code, _, _ in scene.found()] == ["image-undecodable"] and read == ["t3.png"]


def test_other_content_with_the_size_and_time_of_the_former_is_read_anew(scene):
    """As tar, rsync and container images leave it, which set the time of change of a file."""
    file = scene.root / "t3.png"
    os.utime(file, (0, 0))
    assert scene.found() == []
    file.write_bytes(bytes(file.stat().st_size))
    os.utime(file, (0, 0))
    assert [code for code, _, _ in scene.found()] == ["image-undecodable"]


def test_a_user_without_a_home_folder_checks_without_a_memory(scene, monkeypatch, caplog):
    monkeypatch.delenv("PADDLE_PDX_CACHE_HOME")

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    assert scene.found() == [] and "earlier checks are not used" in caplog.text


def test_a_check_restores_opencvs_threads(scene):
    before = cv2.getNumThreads()
    cv2.setNumThreads(3)
    try:
        assert scene.found() == [] and cv2.getNumThreads() == 3
    finally:
        cv2.setNumThreads(before)


def test_a_folder_that_may_not_be_read_does_not_stop_the_search(tmp_path, monkeypatch, caplog):
    write_lists(tmp_path / "below" / "set")
    (tmp_path / "closed").mkdir()
    listed = os.scandir

    def refuse(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    assert find_root(str(tmp_path)) == tmp_path / "below" / "set" and "closed" in caplog.text


def test_lists_in_hidden_folders_are_found_only_if_the_folder_is_named(tmp_path, caplog):
    caplog.set_level("INFO")
    for folder in (".old/set", "@eaDir/set", "real/set", "real/.ipynb_checkpoints"):
        write_lists(tmp_path / folder)
    assert find_root(str(tmp_path)) == tmp_path / "real/set"
    assert "hidden folders: 2, system folders: 1" in caplog.text and len(caplog.records) == 1
    assert find_root(str(tmp_path / ".old")) == tmp_path / ".old/set"


def write_lists(root: Path) -> None:
    root.mkdir(parents=True)
    for name in LISTS:
        (root / f"{name}.txt").write_text("a.png 1\n")


def test_samples_of_long_names_and_below_a_link(scene, tmp_path):
    """The link's folder keeps what is in it, and a second run finds nothing in its way."""
    name = "a." + "b" * 240
    shutil.copy(scene.root / "t3.png", scene.root / name)
    records = ImageList("train", scene.root, [name], [1], [1])
    (tmp_path / "big").mkdir()
    (tmp_path / "big" / "mine").touch()
    (tmp_path / "demo_img").symlink_to("big")
    for _ in range(2):
        (sample,) = dataset_pictures.write_samples({"train": records}, tmp_path / "demo_img")["train"]
        assert (tmp_path / "demo_img" / sample).is_file() and len(sample) < 100
    assert (tmp_path / "big" / "mine").is_file() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("content", [b"no database", None])
def test_a_cache_that_cannot_be_used_is_done_without(scene, tmp_path, content):
    folder = tmp_path / "cache" / "check_dataset"
    if content is None:
        (tmp_path / "cache").write_text("a file in place of the folder")
    else:
        folder.mkdir(parents=True)
        for version in range(1, 9):
            (folder / f"images_{version}.sqlite").write_bytes(content * 100)
    assert scene.found() == []


def test_near_pairs_against_brute_force():
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (60, 80), dtype=np.uint8)
    rows = [base[i].copy() for i in rng.integers(0, 60, 300)]
    for row in rows:
        for bit in [*rng.integers(0, 128, rng.integers(0, 7)), *rng.integers(128, 640, rng.integers(0, 20))]:
            row[bit // 8] ^= np.uint8(1 << (bit % 8))
    hashes = {str(i): row.tobytes().hex() for i, row in enumerate(rows)}
    numbers = [int(h, 16) for h in hashes.values()]
    expected = {
        (str(i), str(j))
        for i in range(300)
        for j in range(i + 1, 300)
        if ((numbers[i] ^ numbers[j]) >> 512).bit_count() <= MAX_HAMMING_128
        and ((numbers[i] ^ numbers[j]) % 2**512).bit_count() <= MAX_HAMMING_512
    }
    assert set(near_pairs(hashes)) == expected and len(expected) > 300
    assert list(near_pairs({})) == list(near_pairs({"a": "00" * 80})) == []


@settings(max_examples=200, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=80).map(lambda t: t.encode("utf-8", "surrogatepass")))
def test_arbitrary_bytes_as_a_list_give_findings_and_no_traceback(tmp_path_factory, data):
    root = tmp_path_factory.mktemp("any")
    for name in LISTS:
        (root / f"{name}.txt").write_bytes(data)
    records, findings = read_list(root, "train")
    assert len(records) or findings
    found = check(root, SETTINGS)[1]
    assert all(f.code and f.where and f.message and f.fix for f in found)
    assert [(root / f"{name}.txt").read_bytes() for name in LISTS] == [data] * 3
    shutil.rmtree(root)


def test_every_kind_of_finding_is_listed_on_the_page_and_has_one_code():
    import make_docs

    page = (ROOT / "docs" / "check_dataset.md").read_text(encoding="utf-8")
    assert page == make_docs.check_dataset_page(page)
    listed = re.findall(r"^\| `([a-z0-9-]+)` \| (?:error|warning|note)", page, re.MULTILINE)
    sources = "".join(p.read_text() for room in ("checks", "data", "modes") for p in (PACKAGE / room).rglob("*.py"))
    declared = re.findall(r'FindingSpec\(\s*"([a-z0-9-]+)"', sources)
    assert sorted(declared) == sorted(listed) and len(set(declared)) == len(declared) > 60
    assert not re.findall(r'\bFinding\(\s*"', sources)  # a finding without a listed kind


def test_an_undeclared_finding_of_a_check_is_an_error(scene, monkeypatch):
    def run(data, settings):
        yield Finding("unlisted", "note", "train.txt", "Message.", "Nothing.")

    monkeypatch.setattr(CHECKS, "_entries", {"mine": CheckSpec("mine", run, ())})
    with pytest.raises(ValueError, match="'mine' does not list its finding 'unlisted'"):
        scene.findings()


def test_a_million_faulty_lines_are_counted_and_the_first_kept(scene, monkeypatch):
    monkeypatch.setattr(findings_module, "MAX_PER_CODE", 3)
    for number in range(20):
        scene.add("train", f"missing{number}.png", 0)
        scene.lines["train"].append("no label")
    found = scene.findings()
    for code in ("image-missing", "label-not-integer"):
        rows = [f for f in found if f.code == code]
        assert [f.count for f in rows] == [1, 1, 1, 17] and "17 more" in rows[-1].message
        assert rows[-1].where.startswith("train.txt:")


def test_thousands_of_look_alikes_are_an_end_to_the_search(scene, monkeypatch):
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 10)
    for number in range(12):
        noisy = picture(60).copy()
        noisy[0, number] ^= 1
        scene.add("train", f"alike{number}.png", 0, noisy)
    found = scene.findings()
    assert [f.code for f in found] == ["copy-many", "copy-near"] and "pairs" in found[0].message
