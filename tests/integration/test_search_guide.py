"""The guide of search: its commands run as they stand, in both languages the same ones."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests
from support.runs import ROOT
from support.starter import needs_starter

PAGES = ("search.md", "search.zh-CN.md")
ELSEWHERE = ("pip ", "docker ")  # not run here; tests/integration/test_dockerfile.py looks at the Dockerfile
SERVED = "http://127.0.0.1:8080"


def commands(page: str) -> list[str]:
    """The indented commands of a page."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8").replace("\\\n", " ")
    text = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return [" ".join(line.split()) for line in re.findall(r"^ {4}(\w.*)$", text, re.MULTILINE)]


def python_of(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / "docs" / page).read_text("utf-8"), re.MULTILINE | re.DOTALL)


def test_both_languages_have_the_same_commands_and_code():
    assert commands(PAGES[0]) == commands(PAGES[1]) and len(commands(PAGES[0])) >= 8
    assert python_of(PAGES[0]) == python_of(PAGES[1]) and len(python_of(PAGES[0])) == 1


@pytest.fixture
def folder(faces, tmp_path) -> Path:
    """Photographs as the guide has them: a folder of each class, and a few beside it."""
    for person in range(21, 24):
        for number in range(1, 4):
            target = tmp_path / f"photos/s{person}/{number}.pgm"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(faces / f"images/s{person}/{number:02d}.pgm", target)
    for name, source in (("query", "s22/09"), ("a", "s21/01"), ("b", "s22/01")):
        shutil.copy(faces / f"images/{source}.pgm", tmp_path / f"{name}.jpg")  # the content decides, not the name
    (tmp_path / "main.py").symlink_to(ROOT / "main.py")
    return tmp_path


@pytest.mark.slow
@needs_starter
def test_the_commands_and_the_code_run_in_their_order(folder):
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    ran, said = 0, ""
    for command in commands(PAGES[0]):
        if command.startswith(ELSEWHERE) or "Index.url" in command:  # tests/integration/test_milvus.py has a server
            continue
        if "Global.mode=serve" in command:
            serve(command, folder, env)
        else:
            done = subprocess.run(shlex.split(command), cwd=folder, env=env, capture_output=True, text=True)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
            said += done.stdout
        ran += 1
    assert ran == 4
    assert "s22" in (folder / "output/search.csv").read_text() and (folder / "output/search.html").is_file()
    done = subprocess.run(
        [sys.executable, "-c", *python_of(PAGES[0])], cwd=folder, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stdout.startswith(("bag [('b.jpg', 0.", "None [('b.jpg', 0.")), done.stderr


def serve(command: str, folder: Path, env: dict[str, str]) -> None:
    """Start the service, and ask it for its health and its figures."""
    with subprocess.Popen(shlex.split(command), cwd=folder, env=env, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 90
        while True:
            assert process.poll() is None and time.monotonic() < deadline
            try:
                assert requests.get(f"{SERVED}/healthz", timeout=5).json() == {"status": "ok"}
                break
            except requests.ConnectionError:
                time.sleep(0.2)
        assert requests.get(f"{SERVED}/v1/stats", timeout=60).json()["images"] == 9
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
