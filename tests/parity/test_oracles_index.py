"""PaddleX's files of an index: those of the real wheel are read, and it reads and answers from ours."""

from __future__ import annotations

import json

import numpy as np
import pytest
from support.oracles import ask

from paddlex_feat.errors import GalleryError
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.exchange import export_gallery, import_gallery
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.items import NewItem

pytestmark = [pytest.mark.slow, pytest.mark.nightly]  # an environment with PaddleX takes minutes
D, COUNT = 32, 400
IDENTITY = ModelIdentity("m", "d", "p", D)


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def content(gallery: Gallery) -> dict[str, list[np.ndarray]]:
    """The features of each label, in the order of adding."""
    rows = {int(i): row for ids, part in gallery.rows() for i, row in zip(ids, part, strict=True)}
    found: dict[str, list[np.ndarray]] = {}
    for item in gallery.items():
        found.setdefault(str(item.label), []).append(rows[item.id])
    return found


def test_indexes_go_both_ways(tmp_path):
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    features, queries = unit(rng.standard_normal((COUNT, D))), unit(rng.standard_normal((20, D)))
    labels = [f"种类 {i % 40}" for i in range(COUNT)]
    np.savez(tmp_path / "given.npz", features=features, labels=np.array(labels), queries=queries)
    with Gallery.create(tmp_path / "ours.gallery", IDENTITY) as gallery:
        items = [NewItem(str(i), row, label) for i, (row, label) in enumerate(zip(features, labels, strict=True))]
        gallery.add_items(items)
        gallery.remove(keys=["7"])
        export_gallery(gallery, "paddlex", tmp_path / "ours")
        ask("paddlex", "paddlex_index.py", tmp_path)
        theirs = json.loads((tmp_path / "theirs.json").read_text())
        for answer, other in zip(gallery.answers(queries, 5, None), theirs, strict=True):
            assert [hit.item.label for hit in answer.hits] == other["labels"]
            assert [hit.score for hit in answer.hits] == pytest.approx(other["scores"], abs=1e-5)
    for name, gone in (("flat", {2, 5}), ("hnsw", set()), ("ivf", {2, 5})):
        expected: dict[str, list[np.ndarray]] = {}
        for i in sorted(set(range(COUNT)) - gone):
            expected.setdefault(labels[i], []).append(features[i])
        if name == "flat":
            expected |= {f"again {i}": [features[i]] for i in range(3)}
        with Gallery.create(tmp_path / f"{name}.gallery", IDENTITY) as gallery:
            assert import_gallery(gallery, tmp_path / name) == sum(map(len, expected.values()))
            found = content(gallery)
        assert found.keys() == expected.keys()
        for label, rows in expected.items():
            assert np.abs(unit(np.stack(rows)) - np.stack(found[label])).max() <= 1e-6
    with Gallery.create(tmp_path / "mixed.gallery", IDENTITY) as gallery, pytest.raises(GalleryError, match="mixed up"):
        import_gallery(gallery, tmp_path / "mixed")
