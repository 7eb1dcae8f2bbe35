"""The service as a process: our interface, PaddleX's, limits, tokens, changes from outside, its end."""

from __future__ import annotations

import base64
import http.server
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
import requests
from support.runs import ROOT
from support.services import CONFIG, Service, serving

pytest.importorskip("fastapi")
pytest.importorskip("uvicorn")


@pytest.fixture(scope="module")
def model(run_folder) -> str:
    return str(run_folder / "best_model/inference")


@pytest.fixture(scope="module")
def service(model, tmp_path_factory) -> Iterator[Service]:
    with serving(tmp_path_factory.mktemp("service"), model) as running:
        yield running


@pytest.fixture
def photographs(faces) -> dict[str, str]:
    """Base64 of two photographs each of six people, by name."""
    files = {f"s{p} {i}": faces / "images" / f"s{p}" / f"{i:02d}.pgm" for p in range(21, 27) for i in (1, 2)}
    return {name: base64.b64encode(file.read_bytes()).decode() for name, file in files.items()}


@pytest.fixture
def filled(service, photographs) -> Service:
    for name, image in photographs.items():
        service.call("POST", "/v1/items", {"image": image, "key": name, "label": name.split()[0], "data": [name]}, 201)
    return service


def test_add_ask_page_through_and_remove(filled, photographs):
    answer = filled.call("POST", "/v1/search", {"image": photographs["s23 1"], "topk": 3, "threshold": None})
    assert answer["label"] == "s23" and answer["hits"][0]["key"] == "s23 1" and answer["hits"][0]["data"] == ["s23 1"]
    assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-6) and len(answer["hits"]) == 3
    boxed = filled.call("POST", "/v1/search", {"image": photographs["s23 1"], "box": [0, 0, 40, 40]})
    assert boxed["box"] == [0, 0, 40, 40] and boxed["threshold"] <= 1
    first = filled.call("GET", "/v1/items?limit=5")
    rest = filled.call("GET", f"/v1/items?after={first['items'][-1]['id']}")
    assert first["images"] == 12 and len(first["items"]) + len(rest["items"]) == 12
    only = filled.call("GET", "/v1/items?label=s24")["items"]
    assert [item["key"] for item in only] == ["s24 1", "s24 2"]
    small = filled.call("GET", f"/v1/items/{only[0]['id']}/thumbnail").content
    assert cv2.imdecode(np.frombuffer(small, np.uint8), 1).shape == (112, 92, 3)
    filled.call("GET", "/v1/items/999999/thumbnail", status=404)
    assert {"label": "s24", "images": 2} in filled.call("GET", "/v1/labels")["labels"]
    assert filled.call("GET", "/v1/stats")["labels"] == 6
    assert filled.call("DELETE", "/v1/items", {"labels": ["s24"]}) == {"removed": 2, "images": 10}
    answer = filled.call("POST", "/v1/search", {"image": photographs["s24 1"], "threshold": 0.999999})
    assert answer["label"] is None and not answer["known"]
    text = filled.call("GET", "/metrics").text
    assert (
        'paddlex_feat_requests_total{path="/v1/items",status="201"}' in text
        and "paddlex_feat_gallery_images 10" in text
    )
    paths = filled.call("GET", "/openapi.json")["paths"]
    assert {"/v1/search", "/v1/items", "/shitu-infer"} <= paths.keys()


def test_a_client_of_paddlex_runs_unchanged(service, photographs):
    def call(path: str, body: dict) -> dict:
        answer = service.call("POST", path, body)
        assert answer["errorCode"] == 0 and answer["errorMsg"] == "Success" and answer["logId"]
        return answer["result"]

    pairs = [{"image": image, "label": name.split()[0]} for name, image in photographs.items()]
    built = call("/shitu-index-build", {"imageLabelPairs": pairs[:8]})
    key = built["indexKey"]
    assert built["imageCount"] == 8
    assert call("/shitu-index-add", {"imageLabelPairs": pairs[8:], "indexKey": key}) == {"imageCount": 12}
    found = call("/shitu-infer", {"image": photographs["s26 2"], "indexKey": key, "topk": 2})["detectedObjects"]
    assert len(found) == 1 and found[0]["bbox"] == [0, 0, 92, 112] and found[0]["score"] == 0
    assert found[0]["recResults"][0] == {"label": "s26", "score": pytest.approx(1, abs=1e-6)}
    assert call("/shitu-index-remove", {"ids": [10, 11], "indexKey": key}) == {"imageCount": 10}
    found = call("/shitu-infer", {"image": photographs["s26 2"], "indexKey": key, "recThreshold": 0.0, "topk": 10})
    assert "s26" not in {hit["label"] for hit in found["detectedObjects"][0]["recResults"]}
    for path, body in (
        ("/shitu-infer", {"image": "no picture", "indexKey": key}),
        ("/shitu-infer", {"image": photographs["s26 2"], "indexKey": "../../etc/passwd"}),
        ("/shitu-infer", {}),
        ("/shitu-index-add", {"imageLabelPairs": pairs, "indexKey": "0" * 32}),
    ):
        answer = requests.post(service.url + path, json=body, timeout=60)
        assert (
            answer.status_code >= 400 and answer.json()["errorCode"] == answer.status_code and answer.json()["errorMsg"]
        )


def test_numbers_of_images_are_paddlex_own(service, photographs):
    """One more than the largest that is there, also after the last ones were removed."""

    def call(path: str, **body: object) -> dict:
        return service.call("POST", path, body)["result"]

    def pairs(*labels: str) -> list[dict]:
        return [{"image": photographs["s21 1"], "label": label} for label in labels]

    key = call("/shitu-index-build", imageLabelPairs=pairs("a", "b", "c"))["indexKey"]
    assert call("/shitu-index-remove", ids=[2], indexKey=key) == {"imageCount": 2}
    assert call("/shitu-index-add", imageLabelPairs=pairs("d"), indexKey=key) == {"imageCount": 3}
    assert call("/shitu-index-remove", ids=[2, 7], indexKey=key) == {"imageCount": 2}
    found = call("/shitu-infer", image=photographs["s21 1"], indexKey=key, topk=9)["detectedObjects"][0]["recResults"]
    assert [hit["label"] for hit in found] == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"image": "%%%"}, 400, "image-not-base64"),
        ({"image": base64.b64encode(b"nothing").decode()}, 400, "image-size"),
        ({"image": "https://example.com/a.jpg"}, 400, "address-refused"),
        ({"image": base64.b64encode(b"P5 100000 100000 255\n").decode()}, 400, "image-size"),
        ({}, 422, "request-invalid"),
        ({"image": "", "topk": 0}, 422, "request-invalid"),
        ({"image": 5}, 422, "request-invalid"),
        ({"image": "", "treshold": 0.5}, 422, "request-invalid"),
        ({"image": "", "threshold": True}, 422, "request-invalid"),
        ('{"image": "", "box": [NaN, 0, 5, 5]}', 422, "request-invalid"),
        ('{"image": "", "box": [0, 0, Infinity, 5]}', 422, "request-invalid"),
    ],
)
def test_wrong_requests_are_explained(service, body, status, code):
    text = body if isinstance(body, str) else json.dumps(body)  # NaN is not JSON, and some programs write it
    headers = {"Content-Type": "application/json"}
    answer = requests.post(f"{service.url}/v1/search", text, headers=headers, timeout=60)
    assert answer.status_code == status and answer.json()["code"] == code and answer.json()["message"]


def test_other_sites_other_hosts_and_long_requests_are_refused(service, photographs):
    body = {"image": photographs["s21 1"]}
    assert service.call("POST", "/v1/search", body, 403, Origin="https://evil.example")["code"] == "origin-refused"
    assert service.call("POST", "/v1/search", body, 403, Host="evil.example")["code"] == "host-refused"
    assert service.call("POST", "/v1/search", {"image": "x" * 2**25}, 413)["code"] == "request-too-long"
    chunked = requests.post(f"{service.url}/v1/search", data=iter([b"{}"]), timeout=60)
    assert chunked.status_code == 411
    host = service.url.removeprefix("http://").replace("127.0.0.1", "LOCALHOST.")
    assert service.call("GET", "/v1/labels", Host=host).keys() == {"labels"}
    page = service.call("GET", "/")
    assert "default-src 'none'" in page.headers["content-security-policy"] and "http://" not in page.text
    assert "https://" not in page.text and page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/nothing", 404),
        ("PUT", "/v1/search", 405),
        ("GET", "/v1/items?after=99999999999999999999", 422),
        ("GET", "/v1/items/99999999999999999999/thumbnail", 422),
        ("DELETE", "/v1/items", 422),
        ("GET", "/shitu-infer", 405),
    ],
)
def test_errors_have_one_form(service, method, path, status):
    answer = service.call(method, path, {"ids": [10**20]} if method == "DELETE" else None, status)
    assert answer.keys() >= ({"errorCode", "errorMsg"} if "shitu" in path else {"code", "message"})


def test_data_that_could_not_be_given_back_is_not_taken(service, photographs):
    body = {"image": photographs["s21 1"], "key": "deep", "data": 1}
    for _ in range(40):
        body["data"] = [body["data"]]
    assert service.call("POST", "/v1/items", body, 422)["code"] == "item-data"
    assert service.call("POST", "/v1/search", {"image": photographs["s21 1"], "threshold": "none"})["threshold"] is None


def test_a_length_beside_chunks_does_not_lead_past_the_limit(service):
    address = service.url.removeprefix("http://").split(":")
    with socket.create_connection((address[0], int(address[1])), 30) as connection:
        head = f"POST /v1/search HTTP/1.1\r\nHost: {':'.join(address)}\r\nContent-Length: 5\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".encode())
        assert connection.recv(100).split()[1] in (b"411", b"400")


def test_a_header_without_end_is_refused(service):
    """Whatever reader of HTTP is installed besides: httptools limits no header."""
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Long: ")
        with suppress(ConnectionError):  # it is closed while more is sent
            for _ in range(64):
                connection.sendall(b"a" * 2**16)
        with suppress(ConnectionResetError):
            assert connection.recv(4096).split()[1:2] in ([], [b"400"], [b"431"])
            while connection.recv(4096):
                pass


def test_nothing_more_is_read_of_what_was_refused(service):
    """Chunks without end would be read for ever."""
    address = service.url.removeprefix("http://")
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(
            f"POST /v1/search HTTP/1.1\r\nHost: {address}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )
        assert connection.recv(4096).split()[1] == b"411"
        with pytest.raises(ConnectionError):
            for _ in range(2000):
                connection.sendall(b"1\r\na\r\n" * 2000)


def test_an_address_is_asked_each_time(model, photographs, tmp_path):
    """Of a camera's last picture, say. Its name in the gallery tells which one came."""
    with picture_server() as (server, address), serving(tmp_path, model, "Serve.allow_urls=True") as service:
        for name, image in list(photographs.items())[:3]:
            service.call("POST", "/v1/items", {"image": image, "key": name}, 201)
        for name, image in list(photographs.items())[:3]:
            server.picture = base64.b64decode(image)
            answer = service.call("POST", "/v1/search", {"image": address, "threshold": None})
            assert answer["hits"][0]["key"] == name
        server.picture = b"x" * 2**25
        assert service.call("POST", "/v1/search", {"image": address}, 400)["code"] == "download-failed"


class Picture(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.picture)))
        self.end_headers()
        with suppress(ConnectionError):  # what is too long is not read to its end
            self.wfile.write(self.server.picture)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def picture_server() -> Iterator[tuple[http.server.HTTPServer, str]]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Picture) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server, f"http://127.0.0.1:{server.server_port}/last.pgm"
        server.shutdown()


def test_silent_connections_keep_nobody_out(service):
    address = service.url.removeprefix("http://").split(":")
    silent = [socket.create_connection((address[0], int(address[1])), 30) for _ in range(80)]
    try:
        assert service.call("GET", "/healthz") == {"status": "ok"} and service.call("GET", "/v1/labels")
    finally:
        for connection in silent:
            connection.close()


@pytest.mark.slow
def test_a_gallery_that_is_removed_or_replaced_is_not_written_to(model, photographs, tmp_path):
    image = photographs["s21 1"]
    with serving(tmp_path, model) as service:
        service.call("POST", "/v1/items", {"image": image, "key": "a"}, 201)
        for file in tmp_path.glob("images.gallery*"):
            file.unlink()
        assert service.call("POST", "/v1/items", {"image": image, "key": "b"}, 503)["code"] == "gallery-missing"
        service.call("GET", "/healthz", status=503)
        from paddlex_feat.inference.predictor import create_model
        from paddlex_feat.search.gallery import Gallery

        Gallery.create(tmp_path / "images.gallery", create_model(CONFIG, model, device="cpu")).close()
        service.call("POST", "/v1/items", {"image": image, "key": "c"}, 201)
        with Gallery(tmp_path / "images.gallery") as gallery:
            assert [item.key for item in gallery.items()] == ["c"]


def test_beyond_this_machine_a_token_is_needed(model, tmp_path):
    words = ("Global.mode=serve", f"Global.output={tmp_path}", f"Predict.model_dir={model}", "Serve.host=0.0.0.0")
    command = [sys.executable, "main.py", "-c", CONFIG, *(w for s in words for w in ("-o", s))]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "PADDLEX_FEAT_TOKEN" in done.stderr
    with serving(tmp_path, model, PADDLEX_FEAT_TOKEN="s3cret") as service:
        assert service.call("GET", "/v1/stats", status=401)["code"] == "token-missing"
        assert service.call("GET", "/v1/stats", status=401, Authorization="Bearer other")
        assert service.call("GET", "/v1/stats", Authorization="Bearer s3cret")["images"] == 0
        assert service.call("GET", "/healthz") == {"status": "ok"}


@pytest.mark.slow
def test_changes_of_other_processes_are_seen_and_a_new_model_is_exchanged_whole(
    model, photographs, faces, tmp_path, run_folder
):
    from paddlex_feat.inference.predictor import create_model
    from paddlex_feat.search.gallery import Gallery

    own = tmp_path / "model"
    copy_model(Path(model), own)
    image = {"image": photographs["s21 1"], "threshold": None}
    with serving(tmp_path, str(own)) as service:
        assert service.call("POST", "/v1/search", image)["hits"] == []
        pairs = [{"image": photographs["s21 1"], "label": "of the first model"}]
        key = service.call("POST", "/shitu-index-build", {"imageLabelPairs": pairs})["result"]["indexKey"]
        first = create_model(CONFIG, own, device="cpu")
        with Gallery(tmp_path / "images.gallery", first) as gallery:
            gallery.add(str(faces / "images/s21/01.pgm"), "added elsewhere")
            assert service.call("POST", "/v1/search", image)["label"] == "added elsewhere"
            change_resizing(own)  # the same weights with other pre-processing are another model
            second = create_model(CONFIG, own, device="cpu")
            gallery.rebuild(second)
        answer = service.call("POST", "/v1/search", image)
        assert answer["model"] == second.identity.as_json() != first.identity.as_json()
        assert answer["hits"][0]["score"] == pytest.approx(1, abs=1e-5)
        asked = {"image": photographs["s21 1"], "indexKey": key}
        assert "cannot be compared" in service.call("POST", "/shitu-infer", asked, 409)["errorMsg"]


def copy_model(source: Path, target: Path) -> None:
    target.mkdir()
    for file in source.iterdir():
        (target / file.name).write_bytes(file.read_bytes())


def change_resizing(folder: Path) -> None:
    file = folder / "inference.yml"
    text = file.read_text()
    file.write_text(text.replace("interpolation: bilinear", "interpolation: bicubic"))
    assert text != file.read_text()


@pytest.mark.slow
def test_a_signal_ends_it_and_requests_at_work_are_answered(model, photographs, tmp_path):
    with serving(tmp_path, model) as service:
        pairs = [{"image": image, "label": "x"} for image in photographs.values()] * 4
        answers: list[dict] = []
        body = {"imageLabelPairs": pairs}
        sender = threading.Thread(
            target=lambda: answers.append(service.call("POST", "/shitu-index-build", body))
        )  # fmt: skip
        sender.start()
        time.sleep(0.5)
        service.process.send_signal(signal.SIGTERM)
        sender.join(60)
        assert answers and answers[0]["result"]["imageCount"] == len(pairs)
        assert service.process.wait(60) == 0
    assert (tmp_path / "serve_result.json").is_file()
