"""Hostile gallery files, files to import, and requests: errors of ours only.

PADDLEX_FEAT_SEARCH_CASES asks for more cases of each kind than a landing's; docs/reliability.md has the count.
"""

from __future__ import annotations

import base64
import json
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.applications import IDENTITY, Client, D, Model

from paddlex_feat.errors import FeatError, GalleryError
from paddlex_feat.inference.identity import identity_of
from paddlex_feat.search.exchange import ID_MAP, export_gallery, import_gallery
from paddlex_feat.search.exchange import _read_id_map as read_id_map
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.items import NewItem

CASES = int(os.environ.get("PADDLEX_FEAT_SEARCH_CASES", "300"))


def unit(count: int) -> np.ndarray:
    rows = np.random.default_rng(0).standard_normal((count, D)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def made(tmp_path) -> Path:
    """The path of a gallery with something of everything."""
    path = tmp_path / "sound.gallery"
    with Gallery.create(path, IDENTITY) as gallery:
        gallery.add_items(
            [
                NewItem(f"k{i}", row, f"label {i % 5}", f"/p/{i}", None, {"n": i}, "s", b"jpeg")
                for i, row in enumerate(unit(60))
            ]
        )
        gallery.remove(ids=[3, 4])
        gallery.compact()
    return path


def damage(data: bytes, chance: random.Random) -> bytes:
    """Bytes exchanged, cut off, doubled or inserted."""
    damaged = bytearray(data)
    for _ in range(chance.choice((1, 1, 3, 10, 100))):
        at = chance.randrange(len(damaged)) if chance.random() < 0.6 else chance.randrange(min(len(damaged), 400))
        kind = chance.randrange(10)
        if kind < 7:
            damaged[at] = chance.randrange(256)
        elif kind == 7:
            damaged[at : at + chance.randrange(1, 40)] = b""
        elif kind == 8:
            damaged[at:at] = damaged[at : at + 30]
        else:
            damaged[at : at + 8] = chance.randbytes(8)
        if not damaged:
            return b""
    return bytes(damaged[: chance.randrange(len(damaged))] if chance.random() < 0.1 else damaged)


def test_damaged_galleries(made, tmp_path):
    data, path, refused = made.read_bytes(), tmp_path / "a.gallery", 0
    for case in range(CASES):
        path.write_bytes(damage(data, random.Random(case)))
        for more in ("-wal", "-shm", "-journal"):
            Path(f"{path}{more}").unlink(missing_ok=True)
        try:
            with Gallery(path) as gallery:
                len(gallery)
                gallery.answers(unit(2), 5)
                gallery.items(labels=["label 1"])
                gallery.thumbnail(7)
                gallery.add_items([NewItem("k1", unit(1)[0])])
                gallery.remove(ids=[9])
        except GalleryError:
            refused += 1
    assert 0 < refused < CASES


@pytest.mark.parametrize("form", ["npz", "parquet"])
def test_damaged_files_to_import(form, made, tmp_path):
    if form == "parquet":
        pytest.importorskip("pyarrow")
    with Gallery(made) as gallery:
        sound = export_gallery(gallery, form, tmp_path)[0]
    data, refused = sound.read_bytes(), 0
    with Gallery.create(tmp_path / "to.gallery", IDENTITY) as gallery:
        for case in range(CASES):
            sound.write_bytes(damage(data, random.Random(case)))
            try:
                import_gallery(gallery, sound)
            except GalleryError:
                refused += 1
    assert refused > 0


def test_damaged_maps_of_ids(tmp_path):
    path, refused = tmp_path / ID_MAP, 0
    text = yaml.safe_dump({"id_map": {i: f"label {i}" for i in range(20)}, "metric_type": "IP"}).encode()
    for case in range(CASES):
        path.write_bytes(damage(text, random.Random(case)))
        try:
            read_id_map(path)
        except GalleryError:
            refused += 1
    assert 0 < refused < CASES


def test_damaged_indexes_of_faiss(made, tmp_path):
    """Each is read by a process of its own, so there are fewer."""
    pytest.importorskip("faiss")
    with Gallery(made) as gallery:
        index, _ = export_gallery(gallery, "paddlex", tmp_path)
    data = index.read_bytes()
    with Gallery.create(tmp_path / "to.gallery", IDENTITY) as gallery:
        for case in range(max(4, CASES // 50)):
            index.write_bytes(damage(data, random.Random(case)))
            try:
                import_gallery(gallery, index)
            except GalleryError:
                continue


@pytest.fixture
def client(tmp_path):
    pytest.importorskip("fastapi")
    from paddlex_feat.search.place import Place
    from paddlex_feat.serving.app import create_app
    from paddlex_feat.serving.guard import Counts, Limits
    from paddlex_feat.serving.state import State

    state = State(Place(tmp_path / "a.gallery"), Model)
    yield Client(create_app(state, "0", Limits(), Counts()))
    state.close()


VALUES: list[Any] = [
    None, True, False, 0, -1, 1.5, 10**30, float("inf"), "", "a", "猫", "\ud800", "\0", "x" * 5000, [], [1], [[]], {},
    {"a": 1},
    [0, 0, 4, 4], [1, 2, 3], ["a"] * 4, [1e308, -1e308, 5, 5], "auto", "none", "evaluation", "../../etc/passwd",
    "0" * 32,
    "http://127.0.0.1:1/a.jpg", "file:///etc/passwd", "data:image/png;base64,AAAA",
]  # fmt: skip
KEYS = ["image", "box", "topk", "threshold", "key", "label", "data", "keys", "labels", "ids", "imageLabelPairs",
        "indexKey", "recThreshold", "visualize"]  # fmt: skip
OWN_KEYS = {
    ("POST", "/v1/search"): ["image", "box", "topk", "threshold"],
    ("POST", "/v1/items"): ["image", "box", "key", "label", "data"],
    ("DELETE", "/v1/items"): ["keys", "labels", "ids"],
}
PATHS = [("POST", "/v1/search"), ("POST", "/v1/items"), ("DELETE", "/v1/items"), ("GET", "/v1/items"),
         ("GET", "/v1/stats"),
         ("GET", "/v1/labels"), ("GET", "/v1/items/x/thumbnail"), ("GET", "/v1/items/3/thumbnail"),
         ("GET", "/metrics"),
         ("POST", "/shitu-index-build"), ("POST", "/shitu-index-add"), ("POST", "/shitu-index-remove"),
         ("POST", "/shitu-infer"), ("PUT", "/v1/items"), ("GET", "/healthz"), ("GET", "/nothing")]  # fmt: skip


def pictures() -> list[str]:
    import cv2

    image = np.random.default_rng(1).integers(0, 256, (20, 16, 3), np.uint8)
    return [base64.b64encode(cv2.imencode(suffix, image)[1].tobytes()).decode() for suffix in (".jpg", ".png", ".bmp")]


def request(chance: random.Random, sound: list[str]) -> tuple[str, str, bytes, bytes]:
    """A request that is nearly right, or not at all."""
    method, path = chance.choice(PATHS)
    body: dict[str, Any] = {}
    known = OWN_KEYS.get((method, path), KEYS) if chance.random() < 0.9 else KEYS  # others are refused at once
    for key in chance.sample(known, chance.randrange(min(5, len(known)))):
        body[key] = chance.choice(VALUES)
    if chance.random() < 0.7 and "image" in known:
        data = base64.b64decode(chance.choice(sound))
        body["image"] = base64.b64encode(damage(data, chance) if chance.random() < 0.5 else data).decode()
    if chance.random() < 0.5 and "key" in known:
        body.setdefault("key", f"key {chance.randrange(50)}")
    if "index" in path and chance.random() < 0.5:
        body["imageLabelPairs"] = [
            {"image": chance.choice(sound), "label": chance.choice(("a", "", "猫"))}
        ] * chance.randrange(3)
    content = json.dumps(body).encode()
    if chance.random() < 0.15 and content:
        content = damage(content, chance)
    label, after, limit = (chance.choice(v) for v in (("a", "%ff", ""), (0, -5, "x", 10**25), (1, -1, 10**9)))
    query = f"label={label}&after={after}&limit={limit}"
    return method, path, content, query.encode() if chance.random() < 0.4 else b""


def test_hostile_requests(client):
    sound, statuses = pictures(), set()
    for case in range(2 * CASES):
        method, path, body, query = request(random.Random(case), sound)
        status, content = client.send(method, path, body, query)
        assert status < 500, (method, path, body[:300], query, content[:500])
        statuses.add(status)
        if status >= 400 and path.startswith(("/v1", "/shitu")) and status not in (404, 405):
            answer = json.loads(content)
            assert answer.get("message") or answer.get("errorMsg") or answer.get("detail")
    assert {200, 201, 400, 404, 405, 422} <= statuses


def test_features_of_changed_models_are_refused(run_folder, tmp_path):
    """A bit of the parameters or of the graph, a number or a word of the pre-processing: another model."""
    source = run_folder / "best_model/inference"
    files = {file.name: file.read_bytes() for file in source.iterdir() if file.is_file()}
    own = identity_of(source, D)
    lines = files["inference.yml"].decode().splitlines()
    steps = [i for i, line in enumerate(lines) if any(c.isdigit() for c in line) and i > lines.index("PreProcess:")]
    refused = unusable = 0
    with Gallery.create(tmp_path / "a.gallery", own) as gallery:
        for case in range(100):
            chance, folder = random.Random(case), tmp_path / str(case)
            folder.mkdir()
            changed = dict(files)
            if case % 3 == 2:
                number = chance.choice(steps)
                digit = next(c for c in lines[number] if c.isdigit())
                other = lines[number].replace(digit, str((int(digit) + 1) % 10 or 1), 1)
                changed["inference.yml"] = "\n".join([*lines[:number], other, *lines[number + 1 :]]).encode()
            else:
                name = ("inference.pdiparams", "inference.json")[case % 3]
                data = bytearray(files[name])
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
                changed[name] = bytes(data)
            for name, data in changed.items():
                (folder / name).write_bytes(data)
            try:
                identity = identity_of(folder, D)
            except FeatError:
                unusable += 1  # such as an interpolation that does not exist: it has no features
                continue
            with pytest.raises(GalleryError, match="cannot be compared"):
                gallery.require_same(identity)
            refused += 1
    assert refused + unusable == 100 and refused >= 66  # all with another graph or other parameters
