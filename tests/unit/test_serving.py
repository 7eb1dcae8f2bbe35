"""The service's application in this process: limits, exchanges, and the galleries of PaddleX's clients."""

from __future__ import annotations

import asyncio
import base64
import gc
import json
import logging
import socket
import threading
import time
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.applications import IDENTITY, Client, Model

pytest.importorskip("fastapi")

from paddlex_feat.inference.identity import ModelIdentity
from paddlex_feat.search.gallery import Gallery
from paddlex_feat.search.place import Place
from paddlex_feat.serving import guard, state
from paddlex_feat.serving.app import create_app
from paddlex_feat.serving.guard import Counts, Limits
from paddlex_feat.serving.state import State

OTHER = ModelIdentity("m", "d", "another p", IDENTITY.dimension)


class World:
    """A service, and the model that it loads next.

    Attributes:
        identity: of the model that is loaded next; an exception: loading raises it.
        loads: number of models loaded.
        models: they, weakly.
    """

    def __init__(self, folder: Path):
        self.path = folder / "a.gallery"
        self.identity: ModelIdentity | Exception = IDENTITY
        self.loads, self.models = 0, list[weakref.ref[Model]]()
        self.state = State(Place(self.path), self.load)  # type: ignore[arg-type]
        self.client = Client(create_app(self.state, "0", Limits(max_requests=8), Counts()))

    def load(self) -> Model:
        self.loads += 1
        if isinstance(self.identity, Exception):
            raise self.identity
        model = Model(self.identity)
        self.models.append(weakref.ref(model))
        return model

    def ask(self, method: str, path: str, body: Any = None, status: int = 200) -> Any:
        found, content = self.client.send(method, path, json.dumps(body).encode())
        assert found == status, content
        return json.loads(content)

    def exchange(self, identity: ModelIdentity, path: Path | None = None) -> None:
        """Rebuild the gallery with another model, as another process does."""
        if path is None:
            self.identity = identity
        with Gallery(path or self.path) as gallery:
            gallery.rebuild(Model(identity))  # type: ignore[arg-type]

    def alive(self) -> int:
        gc.collect()
        return sum(model() is not None for model in self.models)


@pytest.fixture
def world(tmp_path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.state.close()


def picture() -> str:
    import cv2

    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    return base64.b64encode(cv2.imencode(".png", image)[1].tobytes()).decode()


def built(world: World) -> str:
    answer = world.ask("POST", "/shitu-index-build", {"imageLabelPairs": [{"image": picture(), "label": "a"}]})
    return answer["result"]["indexKey"]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/items", {"ids": [""] * 700_000}),
        ("/v1/items", {"keys": [1] * 700_000}),
        ("/v1/items", {"ids": [1] * 20_000}),
        ("/v1/items", {f"unknown {n}": 0 for n in range(200_000)}),
        ("/shitu-index-remove", {"ids": [""] * 700_000}),
        ("/shitu-index-build", {"imageLabelPairs": [0] * 700_000}),
    ],
)
def test_a_body_of_faults_is_refused_at_the_first(world, path, body):
    method = "DELETE" if path == "/v1/items" else "POST"
    content = json.dumps(body).encode()
    json.loads(content)
    started = time.process_time()
    status, _ = world.client.send(method, path, content)
    assert status == 422 and time.process_time() - started < 1.5


def test_a_request_that_does_not_arrive_gives_its_place_up(world, monkeypatch):
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.2)
    body = json.dumps({"image": picture()}).encode()
    late = [world.client.sent("POST", "/v1/search", body, wait=5) for _ in range(8)]
    started = time.monotonic()
    answers = world.client.together(*late)
    assert {status for status, _ in answers} == {408} and time.monotonic() - started < 3
    assert world.ask("POST", "/v1/search", {"image": picture()})["hits"] == []


def test_health_needs_no_thread_of_the_requests(world, monkeypatch):
    going_on = threading.Event()
    monkeypatch.setattr(Model, "features_of", lambda *_: going_on.wait(30) and 1 / 0)
    body = json.dumps({"image": picture(), "key": "a"}).encode()

    async def health() -> tuple[int, bytes]:
        await asyncio.sleep(0.3)
        try:
            return await asyncio.wait_for(world.client.sent("GET", "/healthz"), 5)
        finally:
            going_on.set()

    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    asked = [world.client.sent("POST", "/v1/items", body) for _ in range(8)]
    found = world.client.together(health(), *(failing(each) for each in asked))
    assert found[0] == (200, b'{"status":"ok"}') and found[1:] == [500] * 8


async def failing(request: Any) -> int:
    """The status of a request that fails in the service, which raises its error once more."""
    try:
        return (await request)[0]
    except ZeroDivisionError:
        return 500


def test_models_that_were_exchanged_leave_whatever_clients_have_built(world):
    for turn in range(4):
        built(world)
        world.exchange(OTHER if turn % 2 == 0 else IDENTITY)
        world.ask("GET", "/v1/stats")
    deadline = time.monotonic() + 10
    while world.alive() > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert world.loads == 5 and world.alive() == 1


def test_a_clients_gallery_that_was_built_anew_is_answered_from(world):
    key = built(world)
    asked = {"image": picture(), "indexKey": key, "recThreshold": -1}
    assert world.ask("POST", "/shitu-infer", asked)["result"]["detectedObjects"][0]["recResults"]
    world.exchange(OTHER)
    world.ask("GET", "/v1/stats")  # a gallery of a client's own does not tell that the service's was exchanged
    assert "cannot be compared" in world.ask("POST", "/shitu-infer", asked, 409)["errorMsg"]
    folder = world.path.with_name(f"{world.path.name}.indexes")
    with Gallery(folder / f"{key}.gallery") as gallery:
        gallery.remove(ids=[item.id for item in gallery.items()])
        gallery.rebuild(Model(OTHER))  # type: ignore[arg-type]
    assert world.ask("POST", "/shitu-infer", asked)["result"]["detectedObjects"][0]["recResults"] == []


def test_a_model_that_cannot_be_loaded_is_not_tried_at_each_request(world, monkeypatch):
    world.exchange(OTHER)
    world.identity = OSError("no memory")
    for _ in range(5):
        assert world.ask("GET", "/v1/stats", status=503)["code"] == "model-exchange"
    assert world.loads == 2
    world.identity = OTHER
    monkeypatch.setattr(state, "RETRY_SECONDS", 0)
    assert world.ask("GET", "/v1/stats")["images"] == 0


def test_a_build_that_is_refused_leaves_no_gallery(world):
    pairs = [{"image": picture(), "label": "\ud800"}]
    world.ask("POST", "/shitu-index-build", {"imageLabelPairs": pairs}, 422)
    assert not list(world.path.parent.glob("**/*.indexes/*"))


def test_base64_may_have_lines(world):
    lines = base64.encodebytes(base64.b64decode(picture())).decode()
    assert lines.count("\n") > 1 and world.ask("POST", "/v1/search", {"image": lines})["hits"] == []


def test_a_state_may_be_closed_twice(world, caplog):
    world.state.close()
    world.state.close()
    world.state._exchanging.shutdown()
    assert not caplog.records


def test_silent_connections_are_closed_and_others_are_not(world, monkeypatch):
    import uvicorn

    from paddlex_feat.serving import connections

    monkeypatch.setattr(connections, "SILENT_SECONDS", 0.3)
    app = create_app(world.state, "0", Limits(), Counts())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, http=connections.Protocol))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    with (
        socket.create_connection(("127.0.0.1", port), 10) as silent,
        socket.create_connection(("127.0.0.1", port)) as one,
    ):
        silent.sendall(b"GET /healthz HTTP/1.1\r\nHost: localh")
        for _ in range(8):
            one.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while b"ok" not in answer:
                answer += one.recv(4096)
            time.sleep(0.15)
        assert silent.recv(10) == b""
    server.should_exit = True
    thread.join(10)
