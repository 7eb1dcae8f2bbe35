"""What a new file replaces is kept, and is in its place until the new one is."""

from __future__ import annotations

import pytest

from paddlex_feat.errors import OutputError
from paddlex_feat.fileio import backups


def test_a_file_that_cannot_be_written_leaves_the_former_one_in_its_place(tmp_path, monkeypatch):
    path = tmp_path / "data.csv"
    path.write_bytes(b"former")

    def full(*_):
        raise OutputError("The disk is full.", where=str(path), fix="Free space.", code="disk-full")

    monkeypatch.setattr(backups, "write_bytes", full)
    with pytest.raises(OutputError):
        backups.write_with_backup(path, b"new")
    assert path.read_bytes() == b"former"


def test_the_former_file_is_kept_and_one_of_the_same_content_is_not(tmp_path):
    path = tmp_path / "data.csv"
    for content in (b"1", b"1", b"2", b"3"):
        backups.write_with_backup(path, content)
    assert sorted((file.name, file.read_bytes()) for file in tmp_path.iterdir()) == [
        ("data.csv", b"3"),
        ("data.csv.bak", b"1"),
        ("data.csv.bak.1", b"2"),
    ]
