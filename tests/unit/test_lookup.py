"""What an error says about a path that cannot be used."""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import pytest

from paddlex_feat.fileio import lookup


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory `proj` with images of awkward names, weights, archives and links."""
    folder = tmp_path / "proj"
    images = folder / "Data/Images"
    images.mkdir(parents=True)
    nfd = unicodedata.normalize("NFD", "é.jpg")
    for name in ("A.JPG", nfd, "a b.jpg", "b（1）.png", "红.jpg", "photo.png", "c0_1.jpg"):
        (images / name).touch()
    (images / os.fsdecode("照片.jpg".encode("gbk"))).touch()
    (images / "目录.jpg".encode("gbk").decode("cp437")).touch()  # by unzip
    for name in ("pdparams", "pdopt", "pdstates"):
        (folder / "best_model").mkdir(exist_ok=True)
        (folder / f"best_model/best_model.{name}").touch()
    (folder / "Data/train.txt").touch()
    (folder / "data.zip").touch()
    (folder / "empty").mkdir()
    (folder / "link").symlink_to("/nowhere/x")
    os.mkfifo(folder / "pipe")
    monkeypatch.chdir(folder)
    return folder


MEANT = {
    "data/images/a.jpg": "Did you mean Data/Images/A.JPG (upper and lower case differ)?",
    "Data/Images/b(1).png": "Did you mean Data/Images/b（1）.png (blanks, widths or invisible characters differ)?",
    "Data/Images/a%20b.jpg": "Did you mean Data/Images/a b.jpg (percent escapes are not decoded here)?",
    "data\\images\\A.JPG": "Data/Images/A.JPG (folders are separated by /; upper and lower case differ)?",
    "C:\\Data\\Images\\A.JPG": "Did you mean Data/Images/A.JPG (folders are separated by /)?",
    "Data/Images/Images/A.JPG": "Did you mean Data/Images/A.JPG (Images is there once)?",
    "Data/Images/Data/Images/A.JPG": "Did you mean Data/Images/A.JPG (Data/Images is there once)?",
    "proj/Data/Images/A.JPG": "Did you mean Data/Images/A.JPG (paths begin at the working directory)?",
    "/Data/Images/A.JPG": "Did you mean Data/Images/A.JPG (relative, without the first slash)?",
    "'Data/Images/A.JPG' ": "Did you mean Data/Images/A.JPG (without what surrounds the path)?",
    "Data/Images/A.JPG,": "Did you mean Data/Images/A.JPG (without what surrounds the path)?",
    "Data/Images/é.jpg": "the same characters in another Unicode form; on disk it is NFD",
    "Data/Images/照片.jpg": "its name is in GBK, not in UTF-8; rename it, e.g. with convmv -f gbk -t utf-8",
    "Data/Images/目录.jpg": "one of the two names was decoded by the wrong encoding",
    os.fsdecode("Data/Images/红.jpg".encode("gbk")): "Images/红.jpg (the path given is in GBK, the name is in UTF-8)?",
    "Data/Imges/A.JPG": "Did you mean Data/Images/A.JPG?",
    "Dada/Imges/A.JPG": "There is no folder Dada; did you mean Data?",
    "Data/Images/photo.jpg": "Did you mean Data/Images/photo.png?",
    "best_model/best_model": "Did you mean best_model/best_model.pdparams?",
    "best_model/best_modl": "Did you mean best_model/best_model.pdparams?",
    "best_model/best_modl.pdparams": "Did you mean best_model/best_model.pdparams?",
    "best_model/best_modl.pdstates": "Did you mean best_model/best_model.pdstates?",
    "best_modle/best_model.pdparams": "Did you mean best_model/best_model.pdparams?",
    "Data/none/deep/a.jpg": "There is no folder Data/none.",
    "empty/a.jpg": "The folder empty is empty.",
    "data.zip/train.txt": "data.zip is an archive; unpack it first and give the folder.",
    "Data": "Data is a folder; give a file in it.",
    "link": "link is a link to /nowhere/x, which does not exist.",
    "link/a.jpg": "link is a link to /nowhere/x, which does not exist.",
    "pipe": "pipe is a device, a pipe or a socket.",
}


@pytest.mark.parametrize("path", MEANT)
def test_a_file_that_was_probably_meant(place, path):
    assert MEANT[path] in lookup.explain(path, "file")


def test_a_leading_slash_that_is_missing(place):
    meant = str(place / "Data")
    assert lookup.explain(meant[1:], "folder") == f"Did you mean {meant} (the first slash is missing)?"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("Data/train.txt", "Data/train.txt is a file; give the folder that holds it, Data."),
        ("data.zip", "data.zip is an archive; unpack it first and give the folder."),
        ("data", "Did you mean Data (upper and lower case differ)?"),
        ("Data/Images/a.jpg", "Data/Images/A.JPG is a file; give the folder that holds it, Data/Images."),
        ("Data/Data", "Did you mean Data (Data is there once)?"),
        ("best_model", ""),
    ],
)
def test_a_folder_that_was_probably_meant(place, path, message):
    assert lookup.explain(path, "folder") == message


def test_an_archive_beside_the_missing_folder(place):
    (place / "orl.tar.gz").touch()
    assert lookup.explain("orl", "folder") == "There is orl.tar.gz; unpack it first."


def test_one_number_of_a_series_is_not_taken_for_another(place):
    assert lookup.explain("Data/Images/c0_2.jpg", "file") == ""


def test_what_exists_as_wanted_needs_no_explanation(place):
    assert [lookup.explain(p, w) for p, w in (("Data", "folder"), ("data.zip", "file"), ("best_model/..", "any"))] == [
        ""
    ] * 3


@pytest.mark.parametrize(
    "path", ["", "a\0b", "x" * 300, "x/" * 3000, "\ud800", "%zz%", "%ff%fe", "~nobody/x", "//", "."]
)
def test_hostile_paths_raise_nothing(place, path):
    assert isinstance(lookup.explain(path, "file"), str)
    assert lookup.problem("The file", path, "file").startswith("The file ")


def test_paths_of_a_list_begin_at_its_folder(place):
    find = lookup.Lookup("Data").explain
    meant = "Did you mean Images/A.JPG (paths begin at the folder of the list"
    assert find("Data/A.JPG", "file") == f"{meant}; upper and lower case differ)?"  # of the folder, images
    meant += ")?"
    for path in ("Data/proj/Images/A.JPG", "/home/someone/set/Images/A.JPG"):
        assert find(path, "file") == meant
