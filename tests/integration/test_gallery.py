"""Galleries of real photographs with a real model: add, ask, change, and who may compare what."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import ROOT

from paddlex_feat.errors import GalleryError, ImageError, WeightsError
from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.inference.predictor import Predictor, create_model
from paddlex_feat.search import gallery as gallery_module
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.items import NewItem


@pytest.fixture(scope="module")
def model(run_folder) -> Predictor:
    return create_model("PP-ShiTuV2_rec", run_folder / "best_model/inference", device="cpu")


@pytest.fixture
def photographs(faces) -> list[str]:
    """Two of each of ten people, who are the names of their folders."""
    return [str(faces / "images" / f"s{person}" / f"{i:02d}.pgm") for person in range(21, 31) for i in (1, 2)]


@pytest.fixture
def gallery(model, photographs, tmp_path):
    with Gallery.create(tmp_path / "people.gallery", model) as made:
        made.add(photographs, labels=[Path(p).parent.name for p in photographs])
        yield made


def test_each_image_is_its_own_nearest_with_the_similarity_of_predict(gallery, model, photographs):
    features = np.stack([result.feature for result in model.predict(photographs)]).astype(np.float64)
    for number, answer in enumerate(gallery.search(photographs, topk=5, threshold=None)):
        assert answer.name == answer.hits[0].item.path == photographs[number]
        assert (
            answer.hits[0].score == pytest.approx(1, abs=1e-6) and answer.label == Path(photographs[number]).parent.name
        )
        expected = np.sort(features @ features[number])[::-1][:5]
        assert [hit.score for hit in answer.hits] == pytest.approx(expected.tolist(), abs=1e-6)


def test_arrays_boxes_and_pages_are_images_with_names_of_their_own(gallery, model, photographs):
    image = cv2.imread(photographs[0])
    with pytest.raises(GalleryError, match="needs a key"):
        gallery.add(image)
    gallery.add(
        [image, {"img": photographs[1], "boxes": [[0, 0, 60, 60], [10, 10, 90, 100]]}], "new", ["array", "boxed"]
    )
    keys = [item.key for item in gallery.items(labels=["new"])]
    assert keys == ["array", "boxed[0,0,60,60]", "boxed[10,10,90,100]"]
    answer = next(iter(gallery.search(image, topk=2, threshold=None)))
    assert answer.name == "input[0]" and {hit.item.key for hit in answer.hits} == {"array", photographs[0]}
    small = cv2.imdecode(np.frombuffer(gallery.thumbnail(gallery.items(keys=["array"])[0].id), np.uint8), 1)
    assert small.shape == image.shape  # it is small already
    part = gallery.items(keys=["boxed[0,0,60,60]"])[0]
    assert part.box == (0, 0, 60, 60) and part.path == photographs[1]


def test_what_has_not_changed_is_not_embedded_again(gallery, model, photographs, tmp_path, monkeypatch):
    own = tmp_path / "own.png"
    cv2.imwrite(str(own), cv2.imread(photographs[0]))
    first = gallery.add([str(own)], labels="own", skip_unchanged=True)
    assert len(first.ids) == 1 and not first.unchanged
    assert gallery.add([str(own)], labels="own", skip_unchanged=True).unchanged == 1
    assert gallery.add([str(own)], labels="other", skip_unchanged=True).ids == first.ids  # another label is a change
    cv2.imwrite(str(own), cv2.imread(photographs[5])[:, ::-1])
    assert gallery.add([str(own)], labels="other", skip_unchanged=True).ids == first.ids
    assert len(gallery) == len(photographs) + 1


def test_images_that_cannot_be_used_are_told_and_the_others_are_kept(gallery, photographs, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"\xff\xd8\xff")
    added = gallery.add([photographs[0], str(broken), photographs[1]], labels=["a", "b", "c"], on_error="skip")
    assert [name for name, _ in added.failed] == [str(broken)] and len(added.ids) == 2
    assert [item.label for item in gallery.items(keys=photographs[:2])] == ["a", "c"]
    with pytest.raises(ImageError):
        gallery.add([photographs[2], str(broken)], labels=["d", "b"])
    assert gallery.items(keys=photographs[2:3])[0].label == "d"  # what came before the error stays


def test_inputs_without_a_path_are_each_told(gallery, photographs):
    added = gallery.add([None, photographs[0], 5], on_error="skip")
    assert len(added.failed) == 2 and len(added.ids) == 1 and not added.repeated


def test_images_are_removed_by_what_they_are(gallery, photographs):
    assert gallery.remove(labels=["s21"]) == 2 and gallery.remove(keys=photographs[2:4]) == 2
    left = gallery.items()
    assert gallery.remove(ids=[left[0].id], labels=["nobody"]) == 0 and gallery.remove(ids=[left[0].id]) == 1
    with pytest.raises(GalleryError, match="not said"):
        gallery.remove()
    assert len(gallery) == 15
    gallery.compact()
    assert len(gallery) == 15 and next(iter(gallery.search(photographs[-1]))).hits[0].item.path == photographs[-1]


def test_another_process_adds_and_this_one_answers_with_it(gallery, model, photographs, tmp_path, run_folder):
    code = """
import sys
from paddlex_feat.inference.predictor import create_model
from paddlex_feat.search.gallery import Gallery
path, model, image = sys.argv[1:]
with Gallery(path, create_model("PP-ShiTuV2_rec", model, device="cpu")) as gallery:
    gallery.add(image, "added elsewhere", ["elsewhere"])
    gallery.remove(labels=["s22"])
"""
    image = str(Path(photographs[0]).with_name("05.pgm"))
    words = [str(gallery.where), str(run_folder / "best_model/inference"), image]
    subprocess.run([sys.executable, "-c", code, *words], check=True, cwd=ROOT, timeout=120)
    answer = next(iter(gallery.search(image, threshold=None)))
    assert answer.label == "added elsewhere" and answer.hits[0].score == pytest.approx(1, abs=1e-6)
    assert len(gallery) == len(photographs) - 2 + 1


def test_a_model_whose_files_were_replaced_has_no_identity(run_folder, tmp_path):
    """It would claim to be the model that is there now, and its features would be compared with that one's."""
    folder = shutil.copytree(run_folder / "best_model/inference", tmp_path / "model")
    early, late = (create_model("PP-ShiTuV2_rec", folder, device="cpu") for _ in range(2))
    assert early.identity.name == "PP-ShiTuV2_rec"
    text = (folder / "inference.yml").read_text()
    (folder / "inference.yml").write_text(text.replace("0.485", "0.2"))
    with pytest.raises(WeightsError, match="replaced since it was loaded"):
        late.identity  # noqa: B018
    assert early.identity != create_model("PP-ShiTuV2_rec", folder, device="cpu").identity


def test_features_of_another_model_are_refused_with_both_names(gallery, model, tmp_path):
    identity = model.identity
    for change in (
        {"name": "Another"},
        {"digest": "0" * 64},
        {"preprocess": identity.preprocess.replace("224", "256")},
        {"dimension": 64},
    ):
        other = ModelIdentity(**{**identity.as_json(), **change})
        with pytest.raises(GalleryError, match="cannot be compared") as caught:
            gallery.require_same(other)
        key, value = next(iter(change.items()))
        assert str(value)[:12] in str(caught.value) and str(getattr(identity, key))[:12] in str(caught.value)
        with pytest.raises(GalleryError, match="cannot be compared"):
            Gallery.create(gallery.where, other)


def test_after_rebuilding_the_gallery_asks_with_the_new_model(gallery, photographs, run_folder, tmp_path):
    folder = tmp_path / "other"
    shutil.copytree(run_folder / "best_model/inference", folder)
    config = folder / "inference.yml"
    config.write_text(config.read_text().replace("0.485", "0.2"))
    other = create_model("PP-ShiTuV2_rec", folder, device="cpu")
    assert gallery.rebuild(other) == 20 and gallery.identity == other.identity
    gallery.add(cv2.imread(photographs[0]), "again", ["again"])
    hits = next(iter(gallery.search(photographs[0], topk=2, threshold=None))).hits
    assert {hit.item.key for hit in hits} == {"again", photographs[0]}
    assert [hit.score for hit in hits] == pytest.approx([1, 1], abs=1e-6)


def test_wrong_arguments_are_refused(gallery, photographs):
    for topk in (0, -1, 10**6):
        with pytest.raises(GalleryError, match="topk"):
            list(gallery.search(photographs[0], topk=topk))
    for threshold in ("half", 7, float("nan")):
        with pytest.raises(GalleryError, match="threshold"):
            list(gallery.search(photographs[0], threshold=threshold))
    with pytest.raises(GalleryError, match="2 inputs and 1 labels"):
        gallery.add(photographs[:2], labels=["a"])
    with pytest.raises(GalleryError, match="without its model"), Gallery(gallery.where) as bare:
        bare.add(photographs[0])


def test_one_key_is_one_image(gallery, photographs):
    gallery.add(photographs[0], "x", "own key")
    assert [item.label for item in gallery.items(keys=["own key"])] == ["x"]
    with pytest.raises(GalleryError, match="given twice"):
        gallery.add(photographs[:2], keys=["a", "a"])


def test_the_threshold_is_kept_until_a_twentieth_of_the_images_has_changed(gallery, model, photographs, monkeypatch):
    calls = []
    honest = gallery_module.calibrate
    monkeypatch.setattr(gallery_module, "calibrate", lambda *words: calls.append(1) or honest(*words))
    rows = [NewItem(f"n{i}", row, f"s{i % 9}") for i, row in enumerate(gallery.rows()[0][1][:1].repeat(80, axis=0))]
    gallery.add_items(rows)
    first = gallery.threshold()
    assert len(calls) == 1 and first is not None
    with Gallery(gallery.where, model) as other:
        assert other.threshold() == first  # it is in the file
        other.add_items([NewItem("one more", rows[0].vector, "s1")])
    assert gallery.threshold() == first and len(calls) == 1
    gallery.remove(keys=[f"n{i}" for i in range(10)])
    gallery.threshold()
    assert len(calls) == 2
