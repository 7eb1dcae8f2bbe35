"""A disk that fills while a gallery is built, asked or served: an error says so, and acknowledged changes are kept."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import requests
from support.runs import run_main
from test_faults import remount, small_disk, words  # noqa: F401 - a fixture

from paddlex_feat.search.gallery import Gallery

pytestmark = pytest.mark.slow
EACH = 128  # images of a transaction


@pytest.fixture
def model(run_folder) -> str:
    pytest.importorskip("paddle")
    return f"Predict.model_dir={run_folder}/best_model/inference"


def keys(path: Path) -> set[str]:
    """Of all images, each of which has its feature."""
    with Gallery(path) as gallery:
        items = gallery.items()
        assert {item.id for item in items} == {i for ids, _ in gallery.rows() for i in ids.tolist()}
    return {item.key for item in items}


def test_a_build_goes_on_once_there_is_room(small_disk, faces, model):  # noqa: F811
    remount(small_disk, "size=2500k")
    command = words("index", small_disk, model, f"Index.input={faces}/images")
    done = run_main(*command)
    assert done.returncode == 1 and "that the disk has room" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    remount(small_disk, "size=200m")
    before = keys(small_disk / "images.gallery")
    assert len(before) % EACH == 0 and 0 < len(before) < 400
    done = run_main(*command)
    assert done.returncode == 0, done.stderr
    assert len(keys(small_disk / "images.gallery")) == 400


def test_results_of_search_that_do_not_fit_are_said(small_disk, faces, model, tmp_path):  # noqa: F811
    assert run_main(*words("index", tmp_path, model, f"Index.input={faces}/images/s21")).returncode == 0
    remount(small_disk, "size=24k")
    settings = (model, f"Index.path={tmp_path}/images.gallery", f"Search.input={faces}/images/s21")
    command = words("search", small_disk, *settings)
    done = run_main(*command)
    assert done.returncode == 1 and "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert not list(small_disk.rglob(".paddlex_feat.tmp-*"))
    remount(small_disk, "size=200m")
    done = run_main(*command)
    assert done.returncode == 0 and (small_disk / "search.html").is_file(), done.stderr


def test_a_service_keeps_what_it_has_acknowledged_and_goes_on(small_disk, faces, run_folder, tmp_path):  # noqa: F811
    pytest.importorskip("fastapi")
    from support.services import serving

    image = base64.b64encode((faces / "images/s21/01.pgm").read_bytes()).decode()
    remount(small_disk, "size=1500k")
    path, added, refused = small_disk / "images.gallery", set(), 0
    with serving(tmp_path, f"{run_folder}/best_model/inference", f"Index.path={path}") as service:
        for number in range(300):
            body = {"image": image, "key": str(number), "data": "x" * 20_000}
            answer = requests.post(f"{service.url}/v1/items", json=body, timeout=60)
            assert answer.status_code in (201, 503), answer.text
            if answer.status_code == 201:
                added.add(str(number))
            else:
                assert answer.json()["code"] == "gallery-file" and "disk" in answer.json()["fix"]
                refused += 1
            if refused == 5:
                break
        assert refused == 5 and added
        found = service.call("POST", "/v1/search", {"image": image, "threshold": None, "topk": 3})
        assert {hit["key"] for hit in found["hits"]} <= added
        remount(small_disk, "size=200m")
        service.call("POST", "/v1/items", {"image": image, "key": "later"}, 201)
    assert keys(path) == added | {"later"}
