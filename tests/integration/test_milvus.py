"""Galleries on a Milvus server: the same answers and commands as those of files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.milvus import milvus
from support.runs import run_here

from paddlex_feat.data.images.source import Box
from paddlex_feat.errors import GalleryError
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.items import NewItem

D = 16
IDENTITY = ModelIdentity("model", "digest", "resizing", D)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with milvus(tmp_path_factory.mktemp("milvus")) as url:
        yield url


def unit(seed: int, count: int, dimension: int = D) -> np.ndarray:
    rows = np.random.default_rng(seed).standard_normal((count, dimension))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def items(count: int) -> list[NewItem]:
    """With every kind of value, and texts that a query language could misread."""
    return [
        NewItem(
            f"k\"{i}' or \\ 猫 {{x}}",
            row,
            None if i % 7 == 0 else f"label '{i % 7}\"",
            f"/p/{i}.jpg",
            Box(1, 2, 3.5, 4) if i % 3 == 0 else None,
            {"n": [i, None]} if i % 2 else None,
            f"state {i}",
            b"jpeg" * (i % 5) or None,
        )
        for i, row in enumerate(unit(0, count))
    ]


@pytest.fixture
def pair(server, tmp_path, request):
    """The same images on the server and in a file."""
    from paddlex_feat.search.milvus import MilvusBackend

    name = f"c{abs(hash(request.node.name)) % 10**8}"
    with (
        Gallery(MilvusBackend.create(server, name, IDENTITY)) as far,
        Gallery.create(tmp_path / "a.gallery", IDENTITY) as near,
    ):
        for gallery in (far, near):
            gallery.add_items(items(300))
        yield far, near


def content(gallery: Gallery) -> list[tuple]:
    return [(i.key, i.label, i.path, i.box, i.data, i.state) for i in gallery.items()]


def test_the_same_images_give_the_same_answers(pair):
    far, near = pair
    assert content(far) == content(near) and len(far) == 300 and far.labels() == near.labels()
    queries = np.concatenate([unit(1, 5), items(300)[7].vector[None]])
    for one, other in zip(far.answers(queries, 12, None), near.answers(queries, 12, None), strict=True):
        assert [h.item.key for h in one.hits] == [h.item.key for h in other.hits]
        assert [h.score for h in one.hits] == [h.score for h in other.hits]
    assert far.threshold().threshold == pytest.approx(near.threshold().threshold, abs=1e-6)
    ids = [item.id for item in far.items()]
    assert far.thumbnail(ids[3]) == b"jpeg" * 3 and far.thumbnail(ids[5]) is None and max(ids) < 2**53
    assert far.method() == {"method": "exact", "server": "Milvus"}


def test_the_same_changes_leave_the_same(pair):
    far, near = pair
    given = items(300)
    for gallery in pair:
        gallery.add_items([NewItem(given[5].key, unit(3, 1)[0], "new"), NewItem("more", unit(4, 1)[0])])
        assert gallery.remove(labels=[given[1].label]) == 43 and gallery.remove(keys=["nothing"]) == 0
        assert gallery.remove(labels=[None], keys=[given[7].key, given[2].key]) == 1
        gallery.compact()
    assert sorted(content(far), key=repr) == sorted(content(near), key=repr)
    assert [i.key for i in far.items(limit=4)] == [i.key for i in far.items()][:4]
    after = far.items()[10].id
    assert [i.id for i in far.items(after=after)] == [i.id for i in far.items() if i.id > after]


def test_another_client_sees_a_rebuild_and_other_models_are_refused(pair, server):
    from paddlex_feat.search.milvus import MilvusBackend

    far, _ = pair
    name = far.where.rpartition("/")[2]
    with Gallery(MilvusBackend(server, name)) as other:
        version = other._backend.version()
        far.add_items([NewItem("x", unit(5, 1)[0])])
        assert len(other) == 301 and other._backend.version() != version
        rows, known = unit(6, 301, 8), far.items()
        second = ModelIdentity("second", "digest", "resizing", 8)
        with pytest.raises(GalleryError, match="was changed"):
            far._backend.rebuild(second, [i.id for i in known][1:], rows[1:], far.version())
        assert len(other) == 301
        far._backend.rebuild(second, [i.id for i in known], rows, far.version())
        with pytest.raises(GalleryError) as caught:
            other.answers(unit(1, 1), 3, None)
        assert caught.value.code == "gallery-rebuilt"
    assert far.answers(rows[9:10], 1, None)[0].hits[0].item.key == known[9].key
    with Gallery(MilvusBackend(server, name)) as other, pytest.raises(GalleryError, match="second and model"):
        other.require_same(IDENTITY)


def test_what_the_server_cannot_keep_is_refused_and_absent_servers_are_told(pair, server, tmp_path):
    from paddlex_feat.search.milvus import MilvusBackend

    far, _ = pair
    for item, told in (
        (NewItem("large", unit(1, 1)[0], data="猫" * 30000), "65535 bytes"),
        (NewItem("wide", unit(1, 1, 8)[0]), "not 16 numbers"),
        (NewItem("", unit(1, 1)[0]), "key"),
    ):
        with pytest.raises(GalleryError, match=told):
            far.add_items([item])
    with pytest.raises(GalleryError, match="does not exist"):
        MilvusBackend(server, "nothing")
    with pytest.raises(GalleryError, match="refused the request"):
        MilvusBackend("http://127.0.0.1:9", "images")
    settings = ("Global.mode=index", "Index.action=stats", f"Index.url={server}", "Search.method=hnsw")
    words = [word for setting in (*settings, f"Global.output={tmp_path}") for word in ("-o", setting)]
    done = run_here("-c", "PP-ShiTuV2_rec", *words)
    assert done.returncode == 1 and "has no graph" in done.stderr


@pytest.mark.slow
def test_the_commands_are_the_same(server, run_folder, faces, tmp_path):
    def run(mode: str, *words: str) -> dict:
        fixed = (f"Global.mode={mode}", f"Global.output={tmp_path}", "Global.device=cpu", f"Index.url={server}",
                 "Index.collection=people", f"Predict.model_dir={run_folder / 'best_model/inference'}")  # fmt: skip
        done = run_here("-c", "PP-ShiTuV2_rec", *(w for s in (*fixed, *words) for w in ("-o", s)))
        assert done.returncode == 0, done.stderr[-3000:]
        return json.loads((Path(tmp_path) / f"{mode}_result.json").read_text())

    pictures = faces / "images"
    people = tmp_path / "people"
    for person in ("s21", "s22", "s23"):
        (people / person).mkdir(parents=True)
        for number in (1, 2, 3):
            (people / person / f"{number}.pgm").symlink_to(pictures / person / f"{number:02d}.pgm")
    assert run("index", f"Index.input={people}")["images"] == 9
    assert run("index", f"Index.input={people}")["unchanged"] == 9
    found = run("search", f"Search.input={pictures}/s22/05.pgm", "Search.threshold=none")
    assert found["known"] == 1 and found["search"]["server"] == "Milvus" and "people on http" in found["gallery"]
    (people / "s21/1.pgm").unlink()
    result = run("index", "Index.action=update", f"Index.input={people}")
    assert (result["removed"], result["images"]) == (1, 8)
    assert run("index", "Index.action=list", "Index.labels=s21")["images"] == 2
    assert run("index", "Index.action=stats")["labels"] == 3
    assert run("index", "Index.action=export")["files"] == ["features.npz"]
    assert run("index", "Index.action=rebuild")["images"] == 8
    assert run("index", "Index.action=remove", "Index.labels=s23")["images"] == 5
    assert run("index", "Index.action=compact")["bytes"] is None
