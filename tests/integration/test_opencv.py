"""OpenCV beside other packages of its own: broken, old, twice. And the configuration files of the package."""

from __future__ import annotations

import configparser
import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import types
import warnings
from pathlib import Path

import pytest
from PIL import Image
from support.runs import ROOT, run_main

import paddlex_feat
from paddlex_feat.config import load
from paddlex_feat.config.schema import MODELS
from paddlex_feat.data.images.pillow import open_image
from paddlex_feat.errors import ConfigError, DependencyError
from paddlex_feat.runtime import opencv

MODEL = "PP-ShiTuV2_rec"
NAMES = ("opencv-python", "opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")


def package(folder: Path, name: str, version: str = "4.10.0.84") -> None:
    """The metadata of an installed package."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def broken(folder: Path, code: str) -> Path:
    """A module cv2 in front of the installed one."""
    (folder / "cv2").mkdir(parents=True)
    (folder / "cv2/__init__.py").write_text(code)
    return folder


BROKEN = {
    "not whole": "",
    "libGL.so.1: cannot open": "raise ImportError('libGL.so.1: cannot open shared object file')",
    "not installed": "raise ModuleNotFoundError(\"No module named 'cv2'\", name='cv2')",
    "No module named 'numpy": "raise ModuleNotFoundError(\"No module named 'numpy.core'\", name='numpy.core')",
    "recursion is detected": "raise RuntimeError('recursion is detected\\nsecond line')",
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_mode_says_how_to_repair_opencv(what, tmp_path):
    path = broken(tmp_path / "front", BROKEN[what])
    package(path, "opencv-contrib-python")
    done = run_main("-c", MODEL, "-o", f"Global.output={tmp_path / 'out'}", PYTHONPATH=str(path))
    lines = done.stderr.splitlines()
    assert done.returncode == 1 and len(lines) == 3 and what in lines[0], done.stderr
    assert "opencv-contrib-python 4.10.0.84" in lines[1] and "opencv-python-headless" in lines[1]
    remove, install = lines[2].removeprefix("  to do: ").split(" && ")
    python = f"{sys.executable} -m pip"
    assert (
        remove.startswith(f"{python} uninstall -y ") and install == f"{python} install 'opencv-python-headless>=4.13'"
    )
    assert {"opencv-contrib-python", "opencv-python-headless"} <= set(remove.split())
    result = json.loads((tmp_path / "out/check_dataset_result.json").read_text())
    assert "DependencyError" in result["err_type"] and "Traceback" in (tmp_path / "out/check_dataset.log").read_text()


@pytest.mark.parametrize("name", ["create_model", "Predictor"])
def test_the_python_api_says_it_too(name, tmp_path):
    code = f"import paddlex_feat\ntry:\n paddlex_feat.{name}\nexcept paddlex_feat.DependencyError as e: print(e)"
    path = broken(tmp_path, "")
    environment = {**os.environ, "PYTHONPATH": f"{path}:{ROOT}"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "OpenCV is not whole" in done.stdout and str(path / "cv2") in done.stdout


def test_what_needs_no_opencv_does_without_it(tmp_path):
    path = {"PYTHONPATH": f"{broken(tmp_path, '')}:{ROOT}"}
    assert run_main("--help", **path).returncode == 0
    assert "does not exist" in run_main("-c", "nowhere.yaml", **path).stderr
    assert (
        "many" in run_main("-c", MODEL, "-o", "Global.threads=many", "-o", f"Global.output={tmp_path}", **path).stderr
    )
    names = [name for name in paddlex_feat.__all__ if name not in ("create_model", "Predictor")]
    code = f"import paddlex_feat\nfor name in {names}: getattr(paddlex_feat, name)"
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **path}, check=True)


def test_two_packages_that_work_are_one_warning(tmp_path, small_faces):
    for name in NAMES:
        package(tmp_path / "front", name) if name != "opencv-python-headless" else None
    settings = (f"Global.dataset_dir={small_faces}", f"Global.output={tmp_path / 'out'}", "Train.batch_size=16")
    words = ["-c", MODEL, *(w for s in settings for w in ("-o", s))]
    done = run_main(*words, PYTHONPATH=str(tmp_path / "front"))
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "opencv" in line.lower()]
    assert (
        len(said) == 1 and said[0].startswith("WARNING: opencv-python 4.10.0.84 and ") and "pip uninstall -y" in said[0]
    )
    assert all(f" {name} " in said[0] for name in NAMES)


@pytest.mark.parametrize("version", ["4.10.0", "3.4.18", "4.12.0.88"])
def test_an_old_opencv_is_one_warning_with_the_repair(version, monkeypatch, caplog):
    import cv2

    monkeypatch.setattr(cv2, "__version__", version)
    opencv.require_opencv()
    (record,) = caplog.records
    assert f"OpenCV is {version}; 4.13 or newer" in record.getMessage()
    assert "pip install 'opencv-python-headless>=4.13'" in record.getMessage()


def test_one_package_gives_no_warning(caplog):
    opencv.require_opencv()
    assert len(opencv._installed()) > 1 or not caplog.text


def test_what_a_removed_package_leaves_is_a_folder_without_a_module(monkeypatch):
    """Such as cv2/__pycache__: Python imports it as a namespace."""
    monkeypatch.setitem(sys.modules, "cv2", types.ModuleType("cv2"))
    with pytest.raises(DependencyError, match="not whole"):
        opencv.require_opencv()


def test_the_bound_is_that_of_setup_cfg():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    bound = re.search(r"opencv-python-headless>=([\d.]+)", setup["options"]["install_requires"])
    assert bound is not None and bound[1] == ".".join(map(str, opencv.LEAST))


# The files that come with the package


def test_the_files_lie_in_the_package_and_the_root_has_a_link():
    folder = ROOT / "paddlex_feat/config/shipped"
    assert folder.is_dir() and not folder.is_symlink() and not any(path.is_symlink() for path in folder.rglob("*"))
    assert (ROOT / "configs").resolve() == folder
    assert set(MODELS) <= set(load.shipped()) and all(f.is_relative_to(folder) for f in load.shipped().values())


@pytest.fixture
def copied(tmp_path) -> Path:
    """The package alone, as in a checkout without links or a project that has copied it."""
    shutil.copytree(ROOT / "paddlex_feat", tmp_path / "paddlex_feat", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def run_copy(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "paddlex_feat", *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_checkout_without_links(copied):
    (copied / "configs").write_text("paddlex_feat/config/shipped")  # as git writes a link where there are none
    for name in (MODEL, f"configs/modules/image_feature/{MODEL}.yaml"):
        done = run_copy(copied, "-c", name, "-o", "Global.dataset_dir=nowhere")
        assert "The data set folder does not exist." in done.stderr
        assert ("using the shipped" in done.stderr) == (name != MODEL)


def test_files_that_are_missing_are_one_error(copied):
    shutil.rmtree(copied / "paddlex_feat/config/shipped")
    (copied / "paddlex_feat/config/shipped").write_text("../configs")
    done = run_copy(copied)
    assert done.returncode == 2 and "-c is required" in done.stderr and "are missing" in done.stderr
    done = run_copy(copied, "-c", MODEL)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 3, done.stderr
    assert f"where: {copied}/paddlex_feat/config/shipped" in done.stderr and "Install paddlex_feat again" in done.stderr
    (copied / "mine.yaml").write_text("Global: {dataset_dir: nowhere}")  # needs none of them
    assert "The data set folder does not exist." in run_copy(copied, "-c", "mine.yaml").stderr
    (copied / "paddlex_feat/config/shipped").unlink()
    assert "are missing" in run_copy(copied, "-c", MODEL).stderr


def test_a_folder_of_them_that_is_empty(monkeypatch, tmp_path):
    (tmp_path / "configs/modules/image_feature").mkdir(parents=True)
    monkeypatch.setattr(load.resources, "files", lambda _: tmp_path)
    with pytest.raises(ConfigError, match="missing"):
        load.find_file(MODEL)


def test_opencv_is_silent_in_a_run_unless_the_user_asks_for_its_lines(monkeypatch, capfd, tmp_path):
    import cv2

    (tmp_path / "a.gif").write_bytes(b"GIF89a" + bytes(20))

    def decode() -> str:
        cv2.imread(str(tmp_path / "a.gif"))
        return capfd.readouterr().err

    monkeypatch.delenv("OPENCV_LOG_LEVEL", raising=False)
    loud = decode()
    with opencv.silent_opencv():
        assert decode() == ""
    assert bool(decode()) == bool(loud)
    monkeypatch.setenv("OPENCV_LOG_LEVEL", "INFO")
    with opencv.silent_opencv():
        assert bool(decode()) == bool(loud)
    assert loud


# Nothing of the process is changed


def test_imports_change_no_environment_warnings_or_limits():
    code = """
import os, struct, sys, warnings, zlib
from PIL import Image
def state():
    environment = {k: v for k, v in os.environ.items() if k != "LD_LIBRARY_PATH"}  # which OpenCV's package extends
    return environment, list(warnings.filters), Image.MAX_IMAGE_PIXELS
before = state()
import paddlex_feat
assert state() == before and not {"cv2", "numpy"} & set(sys.modules)
import numpy as np  # has filters of its own
before = state()
import paddlex_feat.checks.runner, paddlex_feat.inference.predictor
from paddlex_feat.data.images.opencv import cv2
assert state() == before
png = cv2.imencode(".png", np.zeros((64, 48, 3), np.uint8))[1].tobytes()
ihdr = b"IHDR" + struct.pack(">2I", 11_000, 10_500) + png[24:29]
large = png[:12] + ihdr + struct.pack(">I", zlib.crc32(ihdr)) + png[33:]
try:
    cv2.imdecode(np.frombuffer(large, np.uint8), cv2.IMREAD_COLOR)
except cv2.error:
    print(paddlex_feat.MOST_PIXELS)
"""
    environment = {k: v for k, v in os.environ.items() if k != "OPENCV_IO_MAX_IMAGE_PIXELS"}
    environment["PYTHONPATH"] = str(ROOT)
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "110000000\n", done.stderr


def test_a_limit_that_the_user_has_set_is_kept():
    code = """
import os
from paddlex_feat.data.images.opencv import cv2
import numpy as np
png = cv2.imencode(".png", np.zeros((64, 48, 3), np.uint8))[1]
try:
    cv2.imdecode(png, cv2.IMREAD_COLOR)
except cv2.error:
    print(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OPENCV_IO_MAX_IMAGE_PIXELS": "99"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.stdout == "99\n", done.stderr


def test_opencv_is_imported_in_one_place():
    """An import elsewhere may come first, and OpenCV would not know the limit."""
    files = {path.relative_to(ROOT / "paddlex_feat").as_posix() for path in (ROOT / "paddlex_feat").rglob("*.py")
             if re.search(r"^\s*(import cv2|from cv2)", path.read_text(), re.MULTILINE)}  # fmt: skip
    assert files == {"data/images/opencv.py", "runtime/opencv.py"}


def test_pillows_warnings_are_hidden_in_our_blocks_alone():
    """From several threads, whose blocks overlap; what other code warns of meanwhile is shown."""
    damaged = io.BytesIO()
    Image.new("L", (9, 9)).save(damaged, "tiff", exif=b"Exif\0\0II*\0\x08\0\0\0\1\0")
    first, second = threading.Event(), threading.Event()
    finished = []

    def read(own: threading.Event, other: threading.Event) -> None:
        with open_image(damaged.getvalue()):
            own.set()
            assert other.wait(10)
            exec(compile("import warnings; warnings.warn('hidden')", "x", "exec"), {"__name__": "PIL.Fake"})
        finished.append(True)

    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        inside = list(warnings.filters)
        threads = [threading.Thread(target=read, args=pair) for pair in ((first, second), (second, first))]
        threads[0].start()
        assert first.wait(10)
        warnings.warn("of other code", stacklevel=1)
        threads[1].start()
        for thread in threads:
            thread.join()
        assert list(warnings.filters) == inside and len(finished) == 2
        exec(compile("import warnings; warnings.warn('of Pillow')", "x", "exec"), {"__name__": "PIL.Fake"})
    assert [str(w.message) for w in shown] == ["of other code", "of Pillow"]
    assert list(warnings.filters) == before


def test_a_filter_set_while_images_are_read_is_kept():
    png = io.BytesIO()
    Image.new("L", (9, 9)).save(png, "png")
    before = list(warnings.filters)
    with warnings.catch_warnings():
        with open_image(png.getvalue()):
            warnings.filterwarnings("ignore", message="mine")
        assert [e[1].pattern for e in warnings.filters if e not in before] == ["mine"]
    opened = open_image(png.getvalue())
    opened.__enter__()
    with warnings.catch_warnings():
        opened.__exit__(None, None, None)
        assert list(warnings.filters) == before
    assert list(warnings.filters) == before  # also of the list that catch_warnings restores


def test_headers_are_read_whatever_pillows_limit_is(monkeypatch):
    png = io.BytesIO()
    Image.new("L", (40, 30)).save(png, "png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Image.DecompressionBombError):
        Image.open(png)
    with open_image(png.getvalue()) as image:
        assert image.size == (40, 30)
    assert Image.MAX_IMAGE_PIXELS == 10
    with pytest.raises(ValueError, match="known format"), open_image(b"%PDF-1.7"):
        pass
