"""What a text given to predict means, and which files of a folder are images."""

from __future__ import annotations

import base64
import json
import logging
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from paddlex_feat.data.images.formats import BEGINNING, SUFFIXES, looks_like_image
from paddlex_feat.errors import ImageError
from paddlex_feat.inference.inputs.items import iter_images
from paddlex_feat.inference.inputs.paths import Search
from paddlex_feat.inference.inputs.texts import MAX_SHOWN

IMAGE = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)


def encoded(suffix: str = ".jpg") -> bytes:
    grey = suffix in (".pgm", ".pbm")
    return cv2.imencode(suffix, IMAGE[..., 0] if grey else IMAGE)[1].tobytes()


def put(folder: Path, *names: str, data: bytes | None = None) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded() if data is None else data)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch) -> Path:
    """Every test runs in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def found(source, search: Search | None = None) -> list[str | None]:
    """The paths of the images, each of which can be decoded."""
    given = list(iter_images(source, search))
    for item in given:
        assert item.load(lambda image: image).shape[2] == 3
    return [item.input_path for item in given]


def fault(source) -> ImageError:
    (item,) = iter_images(source)
    assert isinstance(item.source, ImageError), item
    assert len(item.name) <= 2 * MAX_SHOWN and "\n" not in item.name
    return item.source


# Which files of a folder


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".bmp", ".gif", ".tif", ".ppm", ".pgm", ".ras"])
@pytest.mark.parametrize("name", ["a", "a.jpg_large", "a.jpg.1", "a.txt", "a.png!d", "A.DAT", "a.mp4"])
def test_images_are_known_by_their_content_where_the_suffix_does_not_tell(suffix, name):
    put(Path("p"), name, data=encoded(suffix))
    search = Search()
    assert found("p", search) == [f"p/{name}"] and not search.left_out


def test_every_suffix_of_an_image_is_read_in_either_case():
    names = {f"a{suffix}" for suffix in SUFFIXES} | {f"B{suffix.upper()}" for suffix in SUFFIXES}
    assert {".jfif", ".jpe", ".gif", ".pjpeg", ".jif"} <= SUFFIXES
    put(Path("p"), *names)
    assert found("p") == sorted(f"p/{name}" for name in names)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"BMW and others",
        b"P1 is the first",
        b"P6",
        b"II*\0\x10\0\0\0CR\2\0",
        b"GIF",
        b"RIFF1234AVI ",
        b"{}",
        b"%PDF-1.4",
    ],
)
def test_texts_and_other_files_are_not_images(data):
    assert not looks_like_image(data[:BEGINNING])


def test_what_is_not_an_image_is_counted_in_one_line(caplog):
    put(Path("p"), "a.jpg", "raw.CR2", "clip.thm")
    put(Path("p"), "notes.txt", "x.json", "sub/y.json", "Makefile", "log.20240101", data=b"text")
    os.mkfifo("p/pipe")
    Path("p/dead").symlink_to("nowhere")
    search = Search()
    assert found("p", search) == ["p/a.jpg"]
    assert search.left_out == {
        ".json files": 2,
        ".cr2 files": 1,
        ".thm files": 1,
        ".txt files": 1,
        "files without suffix": 1,
        "other files": 1,
        "files that cannot be read": 2,
    }
    assert [r.levelno for r in caplog.records] == [logging.WARNING] and ".json files: 2" in caplog.text


SYSTEM = (
    "._a.jpg",
    ".ipynb_checkpoints/a-checkpoint.jpg",
    "@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg",
    ".thumbnails/a.jpg",
    ".Trash-1000/files/a.jpg",
    "$RECYCLE.BIN/a.jpg",
    "System Volume Information/a.jpg",
    "lost+found/a.jpg",
    "__MACOSX/._a.jpg",
    "#recycle/a.jpg",
    "Thumbs.db",
    "sub/desktop.ini",
    "sub/.DS_Store",
    "sub/.@__thumb/a.jpg",
)


@pytest.mark.parametrize("name", SYSTEM)
def test_what_systems_leave_is_not_read_and_counted(name, caplog):
    put(Path("p"), "a.jpg", "sub/b.jpg", name)
    caplog.set_level(logging.INFO)
    search = Search()
    assert found("p", search) == ["p/a.jpg", "p/sub/b.jpg"]
    assert sum(search.left_out.values()) == 1 and len(caplog.records) == 1
    assert caplog.records[0].levelno == logging.INFO  # nothing that a user would miss


def test_a_hidden_folder_that_is_named_is_read():
    put(Path(".cache/@eaDir"), "a.jpg", ".b.jpg")
    assert found(".cache/@eaDir") == [".cache/@eaDir/a.jpg"]
    assert found(str(Path(".cache/@eaDir").resolve())) == [str(Path(".cache/@eaDir/a.jpg").resolve())]


def test_a_folder_without_images_says_what_it_holds():
    put(Path("p"), "a.heic", "b.heic", ".c.jpg", data=b"no image")
    error = fault("p")
    assert (
        error.what == "The folder holds no images; left out: .heic files: 2, hidden files: 1." and ".gif" in error.fix
    )


# Patterns


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("./*.jpg", ["./a.jpg", "./b.jpg"]),
        ("*.jp*", ["a.jpg", "b.jpg"]),
        ("[ac].???", ["a.jpg", "c.png"]),
        ("p/*", ["p/deep/e.png", "p/q/f.png", "p/x.png"]),
        ("p/**/*.png", ["p/deep/e.png", "p/q/f.png", "p/x.png"]),
        ("p/**", ["p/deep/e.png", "p/q/f.png", "p/x.png"]),
        ("**/q/*.png", ["p/q/f.png"]),
        ("**/q", ["p/q/f.png"]),
        ("p/d*", ["p/deep/e.png"]),
        ("*/x.png", ["p/x.png"]),
    ],
)
def test_patterns(pattern, expected):
    put(
        Path(),
        "a.jpg",
        "b.jpg",
        "c.png",
        "p/x.png",
        "p/deep/e.png",
        "p/q/f.png",
        "p/.hidden/g.png",
        "p/@eaDir/x.png",
    )
    put(Path(), "notes.txt", "p/notes.txt", data=b"text")
    (Path("p/q") / "loop").symlink_to(Path("p/q").resolve())
    assert found(pattern) == expected
    assert found(str(Path(pattern).resolve())) == [str(Path(name).resolve()) for name in expected]


def test_an_existing_file_is_not_taken_for_a_pattern():
    put(Path(), "a[1].jpg", "a1.jpg", "b*.jpg")
    assert found("a[1].jpg") == ["a[1].jpg"] and found("b*.jpg") == ["b*.jpg"]
    Path("a[1].jpg").unlink()
    assert found("a[1].jpg") == ["a1.jpg"]


@pytest.mark.parametrize(
    ("pattern", "hint"),
    [
        ("*.JPG", "In upper or lower case 2 would match, such as a.jpg"),
        ("photo/*.jpg", "Did you mean photos"),
        ("*.{jpg,png}", "give a list of patterns"),
        ("*.jpg, *.png", '-o \'Predict.input=["*.jpg", "*.png"]\''),
        ("photos/*", "The pattern matches no image; left out: .txt files: 1"),
    ],
)
def test_a_pattern_without_a_match_says_what_may_be_meant(pattern, hint):
    put(Path(), "a.jpg", "b.jpg")
    put(Path("photos"), "c.txt", data=b"text")
    if pattern == "*.jpg, *.png":
        Path("a.jpg").unlink()
        Path("b.jpg").unlink()
    assert hint in fault(pattern).what


# Lists of names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gbk"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_of_names(encoding, end):
    put(Path("set"), "图像/照片 1.jpg", "b.jpg")
    put(Path(), "c.jpg")
    lines = ["图像/照片 1.jpg", "", "b.jpg 7", "  图像/照片 1.jpg\t12", "c.jpg", str(Path("c.jpg").resolve())]
    Path("set/names.txt").write_bytes(end.join(lines).encode(encoding))
    expected = ["set/图像/照片 1.jpg", "set/b.jpg", "set/图像/照片 1.jpg", "c.jpg", str(Path("c.jpg").resolve())]
    assert found("set/names.txt") == found(Path("set/names.txt")) == found({"img": ["set/names.txt"]}) == expected


def test_the_folder_of_the_list_comes_before_the_working_directory():
    put(Path("set"), "a.jpg")
    put(Path(), "a.jpg")
    Path("set/l.lst").write_text("a.jpg\n")
    Path("names").write_text("set/a.jpg\n")  # no suffix, and text
    assert found("set/l.lst") == found("names") == ["set/a.jpg"]


def test_a_list_in_a_folder_is_not_followed_nor_one_in_a_list():
    put(Path("p"), "a.jpg", "b.jpg")
    Path("p/l.txt").write_text("a.jpg\n")
    Path("outer.txt").write_text("p/b.jpg\np/l.txt\n")
    assert found("p") == ["p/a.jpg", "p/b.jpg"]
    first, second = iter_images("outer.txt")
    assert first.input_path == "p/b.jpg"
    with pytest.raises(ImageError, match=r"p/l\.txt \(outer\.txt:2\)"):
        second.load(lambda image: image)


def test_lines_that_cannot_be_used_are_named_with_their_number():
    put(Path("set"), "a.jpg", "Bild.jpg")
    Path("set/l.txt").write_text("a.jpg\nbild.jpg 3\nabsent.jpg\na.jpg,5\nftp://x/a.jpg\n")
    given = list(iter_images("set/l.txt"))
    assert [item.name for item in given] == ["set/a.jpg", "bild.jpg 3", "absent.jpg", "a.jpg,5", "ftp://x/a.jpg"]
    errors = [str(item.source) for item in given[1:]]
    assert all(f"set/l.txt:{n}" in error for n, error in enumerate(errors, 2))
    assert "Bild.jpg" in errors[0] and "does not exist" in errors[1] and "','" in errors[2] and "ftp://" in errors[3]


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "names no image"),
        (b"Dear reader,\nthis is a text.\n", "No line of the list is the path of an existing file"),
        (base64.encodebytes(encoded()), "encoded picture"),
        (b"\xff\x81", "not text in UTF-8"),
    ],
)
def test_a_text_file_without_names_is_one_fault(content, what):
    Path("l.txt").write_bytes(content)
    assert what in fault("l.txt").what


def test_a_long_list_is_read_as_it_is_consumed():
    put(Path(), "a.jpg")
    Path("l.txt").write_text("a.jpg 1\n" * 200_000)
    stream = iter_images("l.txt")
    assert [next(stream).input_path for _ in range(3)] == ["a.jpg"] * 3
    stream.close()


# Other texts


def test_file_urls_and_the_home_folder(here, monkeypatch):
    put(here, "a b.jpg", "100%25.jpg", "图.jpg")
    monkeypatch.setenv("HOME", str(here))
    name = str(here / "a b.jpg")
    for given in (
        f"file://{here}/a%20b.jpg",
        f"file:{here}/a%20b.jpg",
        f"FILE://localhost{here}/a%20b.jpg",
        "~/a b.jpg",
    ):
        assert found(given) == [name]
    assert found(f"file://{here}/100%25.jpg") == [str(here / "100%25.jpg")]  # as written, where there is no 100%.jpg
    assert found(f"file://{here}/%E5%9B%BE.jpg") == [str(here / "图.jpg")]
    assert found("~/*.jpg") == found(f"file://{here}") and len(found("~")) == 3
    assert "computer 'photos'" in fault("file://photos/a.jpg").what


@pytest.mark.parametrize("separator", [",", ", ", ";", "|", " ", ":"])
def test_names_joined_to_one_text(separator):
    put(Path(), "a.jpg", "b.jpg")
    assert "-o 'Predict.input=[a.jpg, b.jpg]'" in fault(f"a.jpg{separator}b.jpg").what


def test_commas_between_names_that_do_not_exist_and_names_that_yaml_would_take_apart():
    assert "-o 'Predict.input=[x.jpg, y.png]'" in fault("x.jpg,y.png").what
    assert '["1.jpg", "a b.jpg"]' in fault("1.jpg, a b.jpg").what
    assert "does not exist" in fault("one, two").what
    put(Path(), "a,b.jpg")
    assert found("a,b.jpg") == ["a,b.jpg"]


@pytest.mark.parametrize("given", ["'a.jpg'", '"a.jpg"', " a.jpg", "a.jpg\n", "“a.jpg”", "A.JPG", "./a.jpeg"])
def test_a_near_name_is_explained(given):
    put(Path(), "a.jpg")
    assert "a.jpg" in fault(given).what and "Did you mean" in fault(given).what


DATA = encoded()


@pytest.mark.parametrize(
    ("given", "what"),
    [
        (base64.b64encode(DATA).decode(), "base64.b64decode(text)"),
        (base64.b64encode(DATA).decode() * 50, "base64.b64decode(text)"),
        (base64.encodebytes(encoded(".png")).decode(), "base64.b64decode(text)"),
        (base64.urlsafe_b64encode(DATA).decode(), "base64.urlsafe_b64decode(text)"),
        ("data:image/jpeg;base64," + base64.b64encode(DATA).decode(), "data: address"),
        (DATA.hex(), "bytes.fromhex(text)"),
        (str(DATA), "ast.literal_eval(text)"),
        (DATA.decode("latin-1"), "text.encode('latin-1')"),
        (json.dumps({"img": "a.jpg"}), "JSON"),
        ("['a.jpg', 'b.jpg']", "Predict.input=[a.jpg, b.jpg]"),
        ("a.jpg\nb.jpg", "several lines"),
        ("<svg xmlns='http://x'></svg>", "XML"),
        ("QUJD" * 3000, "12000 characters"),
        ("s3://bucket/a.jpg", "s3://"),
        ("gs://bucket/*.jpg", "gs://"),
        ("http:/host/a.jpg", "two slashes"),
        ("", "empty text"),
        (" \n", "empty text"),
    ],
)  # fmt: skip
def test_texts_that_are_not_paths_are_named_and_never_repeated(given, what):
    error = fault(given)
    assert what in error.what and len(str(error)) < 800
    (item,) = iter_images([given])
    assert "input[0]" in str(item.source)
    assert len(item.name) <= MAX_SHOWN + 60


def test_addresses_that_are_not_read_show_no_password():
    error = fault("ftp://me:secret@host/a.jpg")
    assert "ftp://" in error.what and "secret" not in str(error)


def test_bytes_say_how_to_decode_them():
    assert "cv2.imdecode" in fault(DATA).fix and "'img'" in fault({"x" * 9999: 1}).what


# The command and the model
