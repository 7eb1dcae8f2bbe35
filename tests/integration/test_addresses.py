"""Tables whose images are addresses: refused, or downloaded once where the user allows it."""

from __future__ import annotations

import base64
import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from test_rewrite_dataset import check, class_folders

from paddlex_feat.data.images.decode import read_bgr
from paddlex_feat.data.readers import require_lists
from paddlex_feat.errors import DatasetError
from paddlex_feat.hub.cache import ENV_CACHE
from paddlex_feat.hub.fetch import image_fetcher


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and notes what is asked for."""

    asked: ClassVar[list[tuple[str, str | None]]] = []

    def do_GET(self) -> None:
        Quiet.asked.append((self.path, self.headers.get("Authorization")))
        super().do_GET()

    def log_message(self, form: str, *values: object) -> None:
        """Nothing."""


@pytest.fixture
def address(tmp_path, monkeypatch) -> Iterator[str]:
    """Of a server of four classes of four images, named by numbers; the cache is empty."""
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    Quiet.asked = []
    handler = functools.partial(Quiet, directory=str(class_folders(tmp_path / "served")))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def table(root: Path, host: str, *more: str) -> Path:
    """data.csv of the served images by address, one of them with user and password, and one image as a file."""
    root.mkdir()
    lines = ["path,label,split"]
    for part, name in (("train", "cat"), ("train", "dog"), ("test", "red fox"), ("test", "猫")):
        for i in range(4):
            user = "joe:s3c@" if (name, i) == ("cat", 0) else ""
            lines.append(f"http://{user}{host}/{part}/{name}/{i}.png,{name},{part}".replace("red fox/", "red%20fox/"))
    (root / "own.png").write_bytes((root.parent / "served/train/cat/0.png").read_bytes())
    (root / "data.csv").write_text("\n".join([*lines, "own.png,cat,train", *more, ""]), encoding="utf-8")
    return root


def test_addresses_are_refused_unless_they_are_allowed(tmp_path, address):
    root = table(tmp_path / "set", address)
    result = check(root, tmp_path / "out", code="check-failed")
    found = [finding for finding in result["findings"] if finding["code"] == "image-url"]
    assert len(found) == 16 and found[0]["where"] == "data.csv:2" and "CheckDataset.urls=download" in found[0]["fix"]
    assert "s3c" not in str(result) and not Quiet.asked
    with pytest.raises(DatasetError, match="is an address"):
        require_lists(str(root))


def test_allowed_addresses_are_downloaded_once_and_are_images_like_others(tmp_path, address):
    root = table(tmp_path / "set", address)
    result = check(root, tmp_path / "out", "CheckDataset.urls=download")
    assert result["attributes"]["train_samples"] == 9 and result["attributes"]["gallery_samples"] == 8
    assert "s3c" not in "".join(f.read_text() for f in (tmp_path / "out").rglob("*.json"))
    users = [user for _, user in Quiet.asked if user]
    assert len(Quiet.asked) == 16 and [base64.b64decode(u.removeprefix("Basic ")) for u in users] == [b"joe:s3c"]

    fetch = image_fetcher("download")
    lists = require_lists(str(root), refuse_outside=True, fetch=fetch)
    assert len(Quiet.asked) == 16 and len(lists["train"]) == 9
    for record, part in ((lists["train"], "train"), (lists["gallery"], "test")):
        for path, label, file in zip(record.paths, record.labels, record.files(), strict=True):
            if path != "own.png":
                own = tmp_path / "served" / part / record.name_of(label) / path.rpartition("/")[2]
                assert (read_bgr(file) == read_bgr(str(own))).all() and f"{address}/{part}" in path


def test_what_cannot_be_downloaded_is_named_and_the_rest_is_kept(tmp_path, address):
    root = table(tmp_path / "set", address, f"http://{address}/train/dog/9.png,dog,train", "s3://x/a.png,dog,train")
    result = check(root, tmp_path / "out", "CheckDataset.urls=download", code="check-failed")
    found = {(finding["code"], finding["where"]) for finding in result["findings"] if finding["severity"] == "error"}
    assert found == {("image-url-failed", "data.csv:19"), ("table-url", "data.csv:20")}
    assert result["attributes"]["train_samples"] == 9
