"""The READMEs say the same, and their code runs as it stands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import ROOT

LANGUAGES = ("README.md", "README.zh-CN.md")


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, code) of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_both_languages_have_the_same_code_pictures_and_structure():
    first, second = ((ROOT / name).read_text(encoding="utf-8") for name in LANGUAGES)
    assert [code for _, code in blocks(LANGUAGES[0])] == [code for _, code in blocks(LANGUAGES[1])]
    for pattern in (r"\]\((docs/[^)]*)\)", r"^(#+) ", r"\d\.\d{3}", r"^\| `(\w+)`"):
        found = [link.replace(".zh-CN.", ".") for link in re.findall(pattern, second, re.MULTILINE)]
        assert re.findall(pattern, first, re.MULTILINE) == found, pattern


@pytest.mark.parametrize("page", [*LANGUAGES, *(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))])
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#?([^)]*)", (ROOT / page).read_text(encoding="utf-8")):
        found = (ROOT / page).parent / target if target else ROOT / page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings}, anchor


@pytest.fixture
def checkout(faces, tmp_path) -> Path:
    """The tracked files in a folder of their own, with the data set that the demo prepares."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        target = tmp_path / "checkout" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target, follow_symlinks=False)
    shutil.copytree(faces, tmp_path / "checkout" / "dataset" / "ORL_faces")
    return tmp_path / "checkout"


@pytest.mark.nightly
def test_the_code_blocks_run_in_their_order(checkout):
    environment = Path(sys.executable).parent
    (checkout / ".venv").symlink_to(environment.parent)
    env = {**os.environ, "PATH": f"{environment}:{os.environ['PATH']}", "PYTHONPATH": str(checkout)}
    ran = 0
    for language, code in blocks(LANGUAGES[0]):
        if language not in ("bash", "python") or code.startswith("bash run "):  # .ci/run types these
            continue
        words = ["bash", "-euo", "pipefail", "-c", code] if language == "bash" else [sys.executable, "-c", code]
        done = subprocess.run(words, cwd=checkout, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{code}\n{done.stderr}"
        ran += 1
    assert ran >= 2
    assert len(list((checkout / "output" / "features").glob("*_res.json"))) == 10
    for mode in ("check_dataset", "train", "evaluate", "export", "predict"):
        assert '"done_flag": true' in (checkout / "output" / f"{mode}_result.json").read_text()


@pytest.mark.slow
def test_the_code_blocks_of_prediction_run_in_their_order(run_folder, faces, tmp_path):
    for package in ("openvino", "paddle2onnx"):  # which the page shows, and Python 3.13 has not all of
        pytest.importorskip(package)
    for name, target in (("dataset/ORL_faces", faces), ("output/best_model", run_folder / "best_model")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).symlink_to(target)
    (tmp_path / "main.py").symlink_to(ROOT / "main.py")
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    page = blocks("docs/predict.md")
    python = "\n".join(code for language, code in page if language == "python")
    shell = [code for language, code in page if language == "bash"]
    assert len(page) == len(shell) + sum(language == "python" for language, _ in page)
    for words in ([sys.executable, "-c", python], *(["bash", "-euo", "pipefail", "-c", code] for code in shell)):
        done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{words[-1]}\n{done.stderr}"
    assert len((tmp_path / "output/features.jsonl").read_text().splitlines()) == 11
    assert (tmp_path / "output/res.json").is_file() and (tmp_path / "output/01_res.json").is_file()
