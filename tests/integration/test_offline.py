"""No network unless asked: every mode runs where all sockets to other machines are refused, and tries none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import QUICK, ROOT

# Python runs a sitecustomize.py that it finds on its path in every process, those that the modes start included.
REFUSING = """
import os, socket, sys

def refuse(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.connect", "socket.sendto"):
        address = arguments[0] if event.startswith("socket.get") else arguments[1]
        local = isinstance(address, (str, bytes)) and event == "socket.connect"  # a Unix socket
        with open(os.environ["ATTEMPTS"], "a") as log:
            log.write(f"{event} {address!r}\\n")
        if not local:
            raise OSError(f"refused by the test: {event} {address!r}")

sys.addaudithook(refuse)
"""
pytest.importorskip("paddle")


class Offline:
    """Runs modes where Python's sockets are refused, and remembers what was tried."""

    def __init__(self, folder: Path):
        self.folder, self.attempts = folder, folder / "attempts.txt"
        (folder / "sitecustomize.py").write_text(REFUSING)
        (folder / "home").mkdir()
        self.environment = {
            **os.environ,
            "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
            "ATTEMPTS": str(self.attempts),
            "PADDLE_PDX_CACHE_HOME": str(folder / "cache"),
            "HOME": str(folder / "home"),
            "XDG_CACHE_HOME": str(folder / "home" / "cache"),
        }

    def run(self, mode: str, *settings: str) -> subprocess.CompletedProcess[str]:
        words = [
            w
            for s in (*QUICK, f"Global.mode={mode}", f"Global.output={self.folder / mode}", *settings)
            for w in ("-o", s)
        ]
        command = [*WITHOUT_NETWORK, sys.executable, str(ROOT / "main.py"), "-c", "PP-ShiTuV2_rec", *words]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)

    def tried(self) -> list[str]:
        return self.attempts.read_text().splitlines() if self.attempts.exists() else []


# A network of its own that has no interface, where the system lets a user make one: C++ has no way out either.
_UNSHARED = ["unshare", "--map-root-user", "--net"]
try:
    WITHOUT_NETWORK = _UNSHARED if subprocess.run([*_UNSHARED, "true"], capture_output=True).returncode == 0 else []
except FileNotFoundError:
    WITHOUT_NETWORK = []


@pytest.fixture
def offline(tmp_path) -> Offline:
    return Offline(tmp_path)


@pytest.mark.slow
def test_every_mode_runs_without_a_network_and_tries_none(offline, small_faces):
    data, best = f"Global.dataset_dir={small_faces}", offline.folder / "train" / "best_model"
    inference, face = f"Predict.model_dir={best / 'inference'}", f"Predict.input={small_faces / 'images' / 's21'}"
    every_form = "Export.format=[paddle, onnx, openvino]"
    for mode, *settings in (
        ("check_dataset", data),
        ("train", data, "Train.epochs_iters=1"),
        ("evaluate", data, f"Evaluate.weight_path={best / 'best_model.pdparams'}"),
        ("export", data, f"Export.weight_path={best / 'best_model.pdparams'}", every_form),
        *(("predict", inference, face, f"Predict.engine={name}") for name in ("paddle", "onnx", "openvino", "auto")),
    ):
        done = offline.run(mode, *settings)
        assert done.returncode == 0, f"{mode}: {done.stderr}"
    assert offline.tried() == []
    marks = [f for f in (offline.folder / "home").rglob("*") if {"Microsoft", "intel"} & set(f.parts)]
    assert not marks  # no identity, no record of use of ONNX Runtime's and OpenVINO's


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "setting", "host"),
    [
        ("predict", "Predict.input=https://images.example/a.jpg", "images.example"),
        ("predict", "Predict.model_dir=null", "paddle-model-ecology"),
        ("export", "Export.weight_path=https://weights.example/a.pdparams", "weights.example"),
        ("train", "Train.pretrain_weight_path=https://weights.example/b.pdparams", "weights.example"),
    ],
)
def test_what_uses_the_network_is_what_was_asked_for(offline, run_folder, small_faces, mode, setting, host):
    model = f"Predict.model_dir={run_folder / 'best_model' / 'inference'}"
    face = f"Predict.input={small_faces / 'images/s21/01.pgm'}"
    done = offline.run(mode, f"Global.dataset_dir={small_faces}", model, face, setting)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert offline.tried() and all(host in line for line in offline.tried())
