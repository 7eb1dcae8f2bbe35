"""Approximate search: what it finds, after any changes; the file beside the gallery, also a damaged one."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("faiss")

from test_search_nearest import unit

from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.graph import Graph, Mark
from paddlex_feat.search.items import NewItem
from paddlex_feat.search.local import LocalBackend
from paddlex_feat.search.nearest import Nearest

D = 24
IDENTITY = ModelIdentity("m", "d", "p", D)
NOW = Mark(7, 0, 1)


def made(count: int, seed: int = 0) -> tuple[Nearest, Graph, np.ndarray]:
    rows = unit(np.random.default_rng(seed), count, D, 20)
    nearest = Nearest(D, quick=False)
    nearest.add(np.arange(1, count + 1), rows)
    graph = Graph(nearest)
    graph.update([], list(range(1, count + 1)))
    return nearest, graph, rows


def share(nearest: Nearest, graph: Graph, queries: np.ndarray, k: int = 10) -> float:
    exact, found = nearest.search(queries, k)[0], graph.search(queries, k)[0]
    return float(np.mean([len(set(a) & set(b)) / k for a, b in zip(exact.tolist(), found.tolist(), strict=True)]))


def test_nearly_all_neighbours_are_found_with_their_exact_similarity():
    nearest, graph, _ = made(3000)
    queries = unit(np.random.default_rng(1), 50, D, 20)
    assert share(nearest, graph, queries) > 0.95 and graph.recall() > 0.95
    ids, scores = graph.search(queries, 5)
    exact, similar = nearest.search(queries, 5)
    same = (ids == exact).all(axis=1)
    assert same.mean() > 0.8 and (scores[same] == similar[same]).all()


def test_it_follows_changes():
    nearest, graph, rows = made(1000)
    rng = np.random.default_rng(2)
    for step in range(8):
        gone = rng.choice(np.concatenate([ids for ids, _ in nearest.rows()]), 60, replace=False).tolist()
        new = np.arange(2000 + 100 * step, 2000 + 100 * step + 50)
        nearest.remove(gone)
        nearest.add(new, unit(rng, 50, D, 20))
        graph.update(gone, new.tolist())
        assert len(graph) == len(nearest)
    assert share(nearest, graph, unit(rng, 50, D, 20)) > 0.95
    everything = np.concatenate([ids for ids, _ in nearest.rows()]).tolist()
    nearest.remove(everything[:-3])
    graph.update(everything[:-3], [])
    assert graph.search(rows[:2], 10)[0].shape == (2, 3)


def test_a_gallery_keeps_its_graph_beside_it_and_tells_its_recall(tmp_path, monkeypatch):
    path = tmp_path / "a.gallery"
    rng = np.random.default_rng(3)
    items = [NewItem(f"k{i}", row, str(i % 7)) for i, row in enumerate(unit(rng, 600, D, 10))]
    with Gallery.create(path, IDENTITY) as gallery:
        gallery.add_items(items)
    with Gallery(LocalBackend(path, approximate=True)) as gallery:
        answer = gallery.answers(items[5].vector[None], 3, None)[0]
        assert answer.hits[0].item.key == "k5" and gallery.method()["method"] == "hnsw"
        assert 0.9 < gallery.method()["recall_at_10"] <= 1
    file = Path(f"{path}.hnsw")
    before = file.read_bytes()
    with Gallery(path) as gallery:
        assert gallery.method() == {"method": "exact"}
        gallery.add_items([NewItem("k5", items[6].vector), NewItem("new", items[5].vector)])
        gallery.remove(keys=["k7"])
    with Gallery(LocalBackend(path, approximate=True)) as gallery:
        hits = gallery.answers(items[5].vector[None], 3, None)[0].hits
        assert hits[0].item.key == "new" and "k7" not in {hit.item.key for hit in hits}
        assert {hit.item.key for hit in gallery.answers(items[6].vector[None], 2, None)[0].hits} == {"k5", "k6"}
    assert file.read_bytes() == before  # it was followed, not made again
    with Gallery(path) as gallery:
        gallery.compact()
    with Gallery(LocalBackend(path, approximate=True)) as gallery:
        assert gallery.answers(items[5].vector[None], 1, None)[0].hits[0].item.key == "new"
    assert file.read_bytes() != before


def test_damaged_files_are_made_anew_and_never_followed(tmp_path):
    nearest, graph, rows = made(400)
    file = tmp_path / "a.hnsw"
    graph.save(file, NOW)
    data, rng = file.read_bytes(), random.Random(4)
    fresh = Graph(nearest)
    assert fresh.load(file, NOW) == 1 and share(nearest, fresh, rows[:30]) == share(nearest, graph, rows[:30])
    assert Graph(nearest).load(tmp_path / "none", NOW) is None
    for other in (NOW._replace(gallery=8), NOW._replace(epoch=3), NOW._replace(change=0)):  # an earlier one
        assert Graph(nearest).load(file, other) is None
    refused = 0
    for number in range(300):
        damaged = bytearray(data)
        for _ in range(rng.choice((1, 10, 100))):
            damaged[rng.randrange(len(data))] = rng.randrange(256)
        if number % 9 == 0:
            del damaged[rng.randrange(len(data)) :]
        file.write_bytes(damaged)
        other = Graph(nearest)
        if other.load(file, NOW) is None:
            refused += 1
        else:
            other.search(rows[:20], 10)
    assert refused > 200


def test_sound_archives_of_wrong_graphs_are_refused(tmp_path):
    nearest, graph, _ = made(400)
    file, rng = tmp_path / "a.hnsw", np.random.default_rng(5)
    graph.save(file, NOW)
    with np.load(file) as content:
        arrays = {name: content[name] for name in content.files}
    changed = {
        "neighbors": lambda a: np.where(rng.random(len(a)) < 0.01, 10**6, a).astype(a.dtype),
        "levels": lambda a: a + 1,
        "offsets": lambda a: a[::-1],
        "ids": lambda a: np.zeros_like(a),
        "entry": lambda a: a + 500,
    }
    for name, change in changed.items():
        with file.open("wb") as stream:
            np.savez(stream, **{**arrays, name: change(arrays[name])})
        assert Graph(nearest).load(file, NOW) is None
    upper = int(np.flatnonzero(arrays["levels"] > 1)[0])
    links = arrays["neighbors"].copy()
    links[int(arrays["offsets"][upper]) + 64] = int(np.flatnonzero(arrays["levels"] == 1)[0])  # first link of level 1
    with file.open("wb") as stream:
        np.savez(stream, **{**arrays, "neighbors": links})
    assert Graph(nearest).load(file, NOW) is None


def test_the_graph_of_a_former_gallery_at_the_same_place_is_not_taken(tmp_path):
    path = tmp_path / "a.gallery"
    for count, seed in ((300, 1), (600, 2)):
        rows = unit(np.random.default_rng(seed), count, D)
        Gallery.create(path, IDENTITY).close()
        with Gallery(LocalBackend(path, approximate=True)) as gallery:
            gallery.add_items([NewItem(str(i), row) for i, row in enumerate(rows)])
            answers = gallery.answers(rows, 1, None)
            assert [answer.hits[0].item.key for answer in answers] == [str(i) for i in range(count)]
            assert gallery.method()["recall_at_10"] > 0.9
        path.unlink()


def test_others_change_the_gallery_while_the_recall_is_measured(tmp_path, monkeypatch):
    path, rows = tmp_path / "a.gallery", unit(np.random.default_rng(3), 400, D)
    Gallery.create(path, IDENTITY).close()
    honest = Graph.recall
    with Gallery(LocalBackend(path, approximate=True)) as gallery, Gallery(path) as other:
        gallery.add_items([NewItem(str(i), row) for i, row in enumerate(rows[:300])])

        def recall(graph: Graph) -> float:
            if len(other) == 300:
                other.add_items([NewItem(str(i), row) for i, row in enumerate(rows[300:], 300)])
                other.compact()
            return honest(graph)

        monkeypatch.setattr(Graph, "recall", recall)
        answers = gallery.answers(rows, 1, None)
        answers = gallery.answers(rows, 1, None)
        assert [answer.hits[0].item.key for answer in answers] == [str(i) for i in range(400)]
