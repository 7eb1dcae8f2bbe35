"""The service as a process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests

from support.runs import ROOT

CONFIG = "PP-ShiTuV2_rec"


class Service:
    """A running service and its address."""

    def __init__(self, process: subprocess.Popen[str], port: int):
        self.process, self.url, self.headers = process, f"http://127.0.0.1:{port}", dict[str, str]()

    def call(self, method: str, path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        answer = requests.request(
            method, self.url + path, json=body, headers={**self.headers, **headers}, timeout=60
        )  # fmt: skip
        assert answer.status_code == status, answer.text
        return answer.json() if answer.headers["content-type"].startswith("application/json") else answer


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(folder: Path, model: str, *words: str, **env: str) -> Iterator[Service]:
    port = free_port()
    settings = ["Global.mode=serve", f"Global.output={folder}", "Global.device=cpu", f"Predict.model_dir={model}"]
    options = [w for s in (*settings, f"Serve.port={port}", *words) for w in ("-o", s)]
    command = [sys.executable, str(ROOT / "main.py"), "-c", CONFIG, *options]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, env={**os.environ, **env}) as process:
        service, deadline = Service(process, port), time.monotonic() + 90
        try:
            while True:
                assert process.poll() is None and time.monotonic() < deadline, process.stderr.read()
                try:
                    requests.get(f"{service.url}/healthz", timeout=5)
                    break
                except requests.ConnectionError:
                    time.sleep(0.2)
            threading.Thread(target=process.stderr.read, daemon=True).start()
            yield service
        finally:
            process.kill()
