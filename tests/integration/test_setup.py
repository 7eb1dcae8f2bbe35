"""`bash run setup --gpu NAME` with the real script, venv and pip, on indexes of stub wheels in folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from support.runs import ROOT

# A build backend that needs nothing from an index; it makes an editable wheel of the stub project.
BACKEND = """
import stub_wheel

def get_requires_for_build_editable(settings=None): return []

def build_editable(folder, settings=None, metadata=None):
    return stub_wheel.write(folder, "paddlex_feat", "0.1", {extras!r}).name
"""
STUB = '''
import pathlib, zipfile

TAGS = "Wheel-Version: 1.0\\nGenerator: stub\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n"

def write(folder, name, version, extras=(), module=None):
    """A wheel; each extra E requires the package E of the same index."""
    base = f"{name.replace('-', '_')}-{version}"
    file = pathlib.Path(folder) / f"{base}-py3-none-any.whl"
    lines = [f"Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    for extra, requirement in extras:
        lines += [f"Provides-Extra: {extra}", f"Requires-Dist: {requirement}; extra == '{extra}'"]
    with zipfile.ZipFile(file, "w") as wheel:
        if module:
            wheel.writestr(f"{module}/__init__.py", f"WHEEL = {name!r}\\n")
        wheel.writestr(f"{base}.dist-info/METADATA", "\\n".join(lines) + "\\n")
        wheel.writestr(f"{base}.dist-info/WHEEL", TAGS)
        wheel.writestr(f"{base}.dist-info/RECORD", "")
    return file
'''
EXTRAS = [
    ("cpu", "paddlepaddle"),
    *((name, f"stub-{name}") for name in ("demo", "starter", "test", "onnx", "openvino")),
]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A checkout with the real scripts/run.py, and indexes: of everybody, and Paddle's of cu126."""
    root = tmp_path_factory.mktemp("setup")
    checkout = root / "checkout"
    (checkout / "scripts").mkdir(parents=True)
    script = (ROOT / "scripts/run.py").read_text(encoding="utf-8")
    assert script.count("https://www.paddlepaddle.org.cn/packages/stable") == 1
    script = script.replace("https://www.paddlepaddle.org.cn/packages/stable", (root / "paddle").as_uri())
    (checkout / "scripts/run.py").write_text(script, encoding="utf-8")
    shutil.copy(ROOT / "run", checkout / "run")
    (checkout / "setup.cfg").touch()
    (checkout / "constraints.txt").touch()
    (checkout / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (checkout / "backend.py").write_text(BACKEND.format(extras=EXTRAS))
    (checkout / "stub_wheel.py").write_text(STUB)
    (checkout / "scripts/demo.py").write_text("import paddle; print('demo on', paddle.WHEEL)\n")
    wheels = [("public", "paddlepaddle", "3.3.1", "paddle"), ("paddle/cu126", "paddlepaddle-gpu", "3.3.1", "paddle")]
    wheels += [("public", f"stub-{name}", "1", None) for name, _ in EXTRAS[1:]]
    wheels += [("public", "paddlepaddle-gpu", "2.6.2", "paddle")]  # as the public index has it
    for index, name, version, module in wheels:
        folder = root / index / name
        folder.mkdir(parents=True, exist_ok=True)
        write = (
            f"import stub_wheel; print(stub_wheel.write({str(folder)!r}, {name!r}, {version!r}, (), {module!r}).name)"
        )
        made = subprocess.run([sys.executable, "-c", write], cwd=checkout, capture_output=True, text=True, check=True)
        assert zipfile.is_zipfile(folder / made.stdout.strip())
        (folder / "index.html").write_text(f'<a href="{made.stdout.strip()}">{made.stdout.strip()}</a>')
    return checkout


def run(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("PIP_", "PYTHON", "VIRTUAL_ENV"))}
    env |= {
        "PIP_INDEX_URL": (project.parent / "public").as_uri(),
        "PIP_NO_CACHE_DIR": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }
    return subprocess.run(["bash", "run", *words], cwd=project, env=env, capture_output=True, text=True, timeout=200)


def packages(project: Path) -> set[str]:
    return {p.name.partition("-")[0] for p in project.glob(".venv/lib/python3*/site-packages/*.dist-info")} - {
        "pip",
        "setuptools",
    }


COMMON = {"paddlex_feat", "stub_demo", "stub_starter", "stub_test", "stub_onnx", "stub_openvino"}


@pytest.mark.slow  # it makes environments
def test_setup_for_a_gpu_installs_the_gpu_wheel_alone_and_the_demo_uses_it(project):
    done = run(project, "setup", "--gpu", "cu126")
    assert done.returncode == 0, done.stderr
    assert packages(project) == COMMON | {"paddlepaddle_gpu"}
    (project / ".venv/mark").touch()  # gone, should the environment be made a second time
    for words in (("demo",), ("setup",), ("setup", "--gpu=cu126")):
        done = run(project, *words)
        assert done.returncode == 0 and (project / ".venv/mark").exists(), done.stderr
        assert ("demo on paddlepaddle-gpu" in done.stdout) == (words == ("demo",))
    missing = run(project, "setup", "--gpu", "cu118")  # of which this index has nothing
    assert missing.returncode == 1 and "Set-up failed" in missing.stderr and "cu118" in missing.stderr
    assert (project / ".venv/made_by_scripts_run").read_text() == "cu118"  # so a later demo tries it again


@pytest.mark.parametrize(
    "words",
    [("--gpu",), ("--gpu", "cu127"), ("--gpu", "cu126/../../x"), ("--cpu",), ("cu126",), ("--gpu", "cu126", "x")],
)
def test_other_words_are_not_understood_and_nothing_is_made(tmp_path, words):
    (tmp_path / "scripts").mkdir()
    for name in ("run", "scripts/run.py"):
        shutil.copy(ROOT / name, tmp_path / name)
    done = run(tmp_path, "setup", *words)
    assert done.returncode == 2 and "setup [--gpu cu118|cu126|cu129|cu130]" in done.stderr
    assert not (tmp_path / ".venv").exists()
