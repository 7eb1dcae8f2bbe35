"""Queries that are in the gallery themselves: counted in a warning, and left out where that is asked for."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from paddlex_feat.config.load import load
from paddlex_feat.data.lists.image_list import ImageList
from paddlex_feat.evaluation import matches
from paddlex_feat.evaluation.matches import describe_self_matches, find_self_pairs
from paddlex_feat.modes.data import self_pairs_of, warn_of_self_matches


@pytest.fixture
def lists(tmp_path) -> dict[str, ImageList]:
    """Five queries: the gallery's own path, a symbolic link, a hard link, a copy, and one of its own."""
    for name, data in (
        ("a", b"aaaa"),
        ("b", b"bbbb"),
        ("c", b"cccc"),
        ("d", b"dddd"),
        ("own", b"eeee"),
        ("other", b"ffff"),
    ):
        (tmp_path / f"{name}.jpg").write_bytes(data)
    (tmp_path / "b_link.jpg").symlink_to("b.jpg")
    os.link(tmp_path / "c.jpg", tmp_path / "c_link.jpg")
    shutil.copy(tmp_path / "d.jpg", tmp_path / "d_copy.jpg")
    gallery = ["a.jpg", "b.jpg", "c.jpg", "d.jpg", "other.jpg"]
    query = ["a.jpg", "b_link.jpg", "c_link.jpg", "d_copy.jpg", "own.jpg"]
    return {
        name: ImageList(name, tmp_path, paths, [0, 1, 2, 3, 4], [1, 2, 3, 4, 5])
        for name, paths in (("gallery", gallery), ("query", query))
    }


def warnings(lists: dict[str, ImageList], caplog: pytest.LogCaptureFixture, **evaluate: object) -> list[str]:
    config = load("PP-ShiTuV2_rec", [(f"Evaluate.{key}", value) for key, value in evaluate.items()])[0]
    caplog.clear()
    warn_of_self_matches(config, lists)
    return caplog.messages


def test_paths_and_links_are_the_same_file_and_copies_are_counted(lists, caplog):
    assert find_self_pairs(lists["query"], lists["gallery"]).tolist() == [[0, 0], [1, 1], [2, 2]]
    (warning,) = warnings(lists, caplog)
    assert "3 of 5 queries are in the gallery themselves" in warning and "-o Evaluate.exclude_self=True" in warning
    assert "1 of 5 queries have a copy of their file in the gallery" in warning


def test_nothing_is_said_where_they_are_left_out_or_there_are_none(lists, caplog):
    assert warnings(lists, caplog, exclude_self=True) == []
    config = load("PP-ShiTuV2_rec", [("Evaluate.exclude_self", True)])[0]
    lists["gallery"].labels[4] = 0  # the match of the first query
    assert self_pairs_of(config, lists).tolist() == [[0, 0], [1, 1], [2, 2]]
    lists["query"].paths[:4], lists["query"]._files = ["own.jpg"] * 4, []
    assert describe_self_matches(lists["query"], lists["gallery"]) == ""


def test_the_search_for_copies_has_an_end(lists, monkeypatch):
    monkeypatch.setattr(matches, "MAX_COMPARED", 8)
    assert "copy" not in describe_self_matches(lists["query"], lists["gallery"])


def test_files_that_do_not_exist_are_compared_by_path(tmp_path):
    names = ImageList("query", Path("/nowhere"), ["x", "y"], [0, 1], [1, 2])
    assert find_self_pairs(names, names).tolist() == [[0, 0], [1, 1]]
    assert "2 of 2 queries" in describe_self_matches(names, names)
