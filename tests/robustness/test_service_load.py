"""Requests of all kinds while models and galleries are exchanged: no mixed answer, and no growing memory.

PADDLEX_FEAT_REQUESTS and PADDLEX_FEAT_SWAPS ask for more than a landing's: 100,000 and 50 were counted for
docs/reliability.md.
"""

from __future__ import annotations

import base64
import json
import os
import re
import resource
import shutil
import threading
import time
from collections import Counter
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import pytest
from support.services import CONFIG, serving

pytestmark = pytest.mark.slow
REQUESTS, SWAPS = int(os.environ.get("PADDLEX_FEAT_REQUESTS", "4000")), int(os.environ.get("PADDLEX_FEAT_SWAPS", "4"))
CLIENTS, PEOPLE = 8, 10
GROWTH = 32 * 1024  # KiB, after warming up
WARM = 0.3  # of all requests: threads, buffers and the first exchanges
PART = 0.2  # of all requests: the median of so long a time counts, for each exchange takes a model more for a moment
SPARE = 512 * 2**20  # bytes of memory beyond those after warming up, which a second model takes while both are there


class Client(threading.Thread):
    """Sends its part of the requests, and looks at each answer."""

    def __init__(self, port: int, number: int, images: dict[str, str], identities: list[dict]):
        super().__init__()
        self.port, self.number, self.images, self.identities = port, number, images, identities
        self.done, self.problems, self.answers, self.models = 0, list[str](), Counter[int](), set[str]()

    def run(self) -> None:
        self.connection = HTTPConnection("127.0.0.1", self.port, timeout=120)
        try:
            while self.done < REQUESTS // CLIENTS and not self.problems:
                self.step(self.done * CLIENTS + self.number)
                self.done += 1
        except Exception as error:  # noqa: BLE001 - a thread's own would be lost
            self.problems.append(repr(error))

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict]:
        self.connection.request(method, path, json.dumps(body), {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        content = json.loads(answer.read())
        self.answers[answer.status] += 1
        return answer.status, content

    def step(self, turn: int) -> None:
        own, name = f"own {self.number}", list(self.images)[turn % PEOPLE]
        if turn % 97 == 5:
            status, _ = self.ask("POST", "/v1/items", {"image": self.images[name], "key": own, "label": "other"})
            self.expect(status == 201, f"adding: {status}")
        elif turn % 97 == 50:
            status, _ = self.ask("DELETE", "/v1/items", {"keys": [own]})
            self.expect(status == 200, f"removing: {status}")
        elif turn % 997 == 3:
            pairs = [{"image": self.images[name], "label": "of a client"}]
            status, built = self.ask("POST", "/shitu-index-build", {"imageLabelPairs": pairs})
            self.expect(status == 200 and built["result"]["imageCount"] == 1, f"building: {status}")
        elif turn % 31 == 7:
            status, found = self.ask("GET", f"/v1/items?limit={turn % 9}")
            self.expect(status == 200 and found["items"], f"listing: {status}")
        elif turn % 53 == 11:
            status, _ = self.ask("POST", "/v1/search", {"image": "%" * (turn % 5000)})
            self.expect(status == 400, f"a wrong image: {status}")
        else:
            self.search(name)

    def search(self, name: str) -> None:
        """The photograph itself is in the gallery: with features of one model its similarity is 1."""
        status, found = self.ask("POST", "/v1/search", {"image": self.images[name], "topk": 9, "threshold": None})
        self.expect(status == 200 and found["model"] in self.identities, f"{status}: {found}")
        scores = {hit["key"]: hit["score"] for hit in found["hits"]}
        self.expect(abs(scores.get(name, 0) - 1) < 1e-5, f"mixed: {scores}")
        self.models.add(found["model"]["preprocess"])

    def expect(self, fine: bool, what: str) -> None:
        if not fine:
            self.problems.append(what)


def memory(process: int, name: str) -> int:
    """A figure of /proc, KiB."""
    return int(re.search(rf"{name}:\s+(\d+)", Path(f"/proc/{process}/status").read_text())[1])  # type: ignore[index]


def with_other_colours(source: Path, target: Path) -> Path:
    """A copy of a model that prepares its images in another way, which makes it another model."""
    shutil.copytree(source, target)
    config = target / "inference.yml"
    text = config.read_text()
    config.write_text(text.replace("0.485", "0.2"))
    assert config.read_text() != text
    return target


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_exchanges_under_load(run_folder, faces, tmp_path):
    pytest.importorskip("fastapi")
    from paddlex_feat.inference.predictor import create_model
    from paddlex_feat.search.gallery import Gallery

    folders = [shutil.copytree(run_folder / "best_model/inference", tmp_path / "a")]
    folders.append(with_other_colours(folders[0], tmp_path / "b"))
    models = [create_model(CONFIG, folder, device="cpu") for folder in folders]
    configs = [(folder / "inference.yml").read_bytes() for folder in folders]
    files = {str(file): file for file in sorted((faces / "images").glob("s2*/01.pgm"))[:PEOPLE]}
    images = {name: base64.b64encode(file.read_bytes()).decode() for name, file in files.items()}
    served = shutil.copytree(folders[0], tmp_path / "served")
    path = tmp_path / "images.gallery"
    with Gallery.create(path, models[0]) as gallery:
        gallery.add(list(files), [Path(name).parent.name for name in files])
    with serving(tmp_path, str(served), f"Index.path={path}") as service:
        port = int(service.url.rpartition(":")[2])
        clients = [Client(port, number, images, [m.identity.as_json() for m in models]) for number in range(CLIENTS)]
        for client in clients:
            client.start()
        early, late, limited, swaps = list[int](), list[int](), False, 0
        while any(client.is_alive() for client in clients):
            done = sum(client.done for client in clients)
            if swaps < SWAPS and done > REQUESTS * (swaps + 1) / (SWAPS + 1):
                swaps += 1
                swap(served, configs[swaps % 2], path, models[(swaps - 1) % 2], models[swaps % 2])
            if WARM < done / REQUESTS < WARM + PART:
                early.append(memory(service.process.pid, "VmRSS"))
            elif done / REQUESTS > 1 - PART:
                late.append(memory(service.process.pid, "VmRSS"))
            if not limited and done > REQUESTS * WARM:
                limited = True
                limit = memory(service.process.pid, "VmData") * 1024 + SPARE
                resource.prlimit(service.process.pid, resource.RLIMIT_DATA, (limit, limit))
            time.sleep(0.02)
    grown = int(np.median(late) - np.median(early))
    problems = [problem for client in clients for problem in client.problems]
    assert not problems, problems[:5]
    answers = sum((client.answers for client in clients), Counter[int]())
    print(f"{dict(answers)}, {swaps} exchanges, {grown} KiB more")
    assert swaps == SWAPS and set().union(*(client.models for client in clients)) == {
        model.identity.as_json()["preprocess"] for model in models
    }
    assert limited and grown <= GROWTH


def swap(served: Path, config: bytes, path: Path, former, new) -> None:
    """Exchange the model's files, then the gallery's features: in this order, for the service loads at the second."""
    from paddlex_feat.fileio.atomic import write_bytes
    from paddlex_feat.search.gallery import Gallery

    write_bytes(served / "inference.yml", config)
    for _ in range(100):  # a client may have added a picture meanwhile, which has no file
        with Gallery(path, former) as gallery:
            gallery.remove(labels=["other"])
            try:
                gallery.rebuild(new)
                return
            except Exception as error:
                if getattr(error, "code", "") not in ("rebuild-without-file", "gallery-changed"):
                    raise
    raise AssertionError("never without changes")
