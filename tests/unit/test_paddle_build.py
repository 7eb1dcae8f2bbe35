"""Paddle's two wheels in one environment, and what run.json and verify know of a GPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from paddlex_feat.errors import DependencyError
from paddlex_feat.provenance import run_record, verify
from paddlex_feat.runtime import paddle_build, paddle_import


def add_wheel(folder: Path, name: str, version: str = "3.3.1") -> None:
    """The metadata of an installed wheel."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


@pytest.fixture
def packages(tmp_path, monkeypatch) -> Path:
    """The only folder that Python finds packages in."""
    (tmp_path / "packages").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path / "packages")])
    return tmp_path / "packages"


@pytest.mark.parametrize("wheels", [[], ["paddlepaddle"], ["paddlepaddle-gpu"]])
def test_one_wheel_is_accepted(packages, wheels):
    for name in wheels:
        add_wheel(packages, name)
    paddle_build.require_one_paddle()
    assert paddle_build.installed() == wheels


def test_both_wheels_are_an_error_with_the_commands_that_repair_it(packages):
    for name in paddle_build.WHEELS:
        add_wheel(packages, name)
    with pytest.raises(DependencyError) as caught:
        paddle_build.require_one_paddle()
    error = caught.value
    assert "paddlepaddle and paddlepaddle-gpu are both installed" in error.what
    assert f"{sys.executable} -m pip uninstall -y paddlepaddle paddlepaddle-gpu" in error.fix
    assert paddle_build.INSTALL_GPU in error.fix and paddle_build.INSTALL_CPU in error.fix


@pytest.mark.parametrize("left", ["paddle/__init__.py", "paddle/libs/README.md"])
def test_a_paddle_whose_files_went_with_the_other_wheel_is_an_error(packages, monkeypatch, left):
    add_wheel(packages, "paddlepaddle")
    (packages / left).parent.mkdir(parents=True)
    (packages / left).touch()
    for name in [name for name in sys.modules if name.partition(".")[0] == "paddle"]:
        monkeypatch.delitem(sys.modules, name)
    try:
        with pytest.raises(DependencyError, match="PaddlePaddle is damaged") as caught:
            paddle_import._import_paddle()
    finally:
        sys.modules.pop("paddle", None)
    assert "pip uninstall -y" in caught.value.fix and str(packages / "paddle") in str(caught.value)


DRIVERS = {
    "NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.199.02  Thu May 11 11:46:56 UTC 2023\nGCC version: gcc 9\n": (
        "470.199.02"
    ),
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  550.54.15  Release Build\n": "550.54.15",
    "something else 1.2.3": None,
}


@pytest.fixture
def card(packages, tmp_path, monkeypatch, fake_gpus):
    """A machine with two GPUs, its driver, the GPU wheel and a GPU build of ONNX Runtime."""
    paddle = pytest.importorskip("paddle")
    fake_gpus(2)
    monkeypatch.setattr(paddle.device.cuda, "get_device_name", lambda device: f"Card {device}")
    monkeypatch.setattr(paddle.device.cuda, "get_device_capability", lambda device: (9, 0))
    for name, value in (("cuda", "12.6"), ("cudnn", "9.5.1"), ("nccl", "22703")):
        monkeypatch.setattr(paddle.version, name, lambda value=value: value)
    monkeypatch.setattr(paddle.base.core, "get_cudnn_switch", lambda: True)
    monkeypatch.setattr(paddle.base.core, "get_cublas_switch", lambda: False)
    add_wheel(packages, "paddlepaddle-gpu")
    add_wheel(packages, "onnxruntime-gpu", "1.22.0")
    (packages / "paddle/version").mkdir(parents=True)
    text = "nccl_version     = '22703'\ncuda_version     = '12.6'\ncudnn_version    = '9.5.1'\nxpu_version = 'False'\n"
    (packages / "paddle/version/__init__.py").write_text(text)
    monkeypatch.setattr(paddle_build, "_DRIVER", tmp_path / "driver")
    (tmp_path / "driver").mkdir()
    (tmp_path / "driver/version").write_text(next(iter(DRIVERS)))
    return tmp_path / "driver/version"


FACTS = {
    "name": "Card gpu:1",
    "capability": "9.0",
    "count": 2,
    "driver": "470.199.02",
    "cuda": "12.6",
    "cudnn": "9.5.1",
    "nccl": "22703",
    "tf32_cudnn": True,
    "tf32_cublas": False,
    "onnxruntime": "onnxruntime-gpu 1.22.0",
}


def test_run_json_records_the_gpu(card, tmp_path):
    (tmp_path / "config.yaml").touch()
    run_record.write_start(tmp_path, ["main.py"], "gpu:1", "native", 1, {})
    assert json.loads((tmp_path / "run.json").read_text())["gpu"] == FACTS
    run_record.write_start(tmp_path, ["main.py"], "cpu", "native", 1, {})
    assert "gpu" not in json.loads((tmp_path / "run.json").read_text())


def test_facts_that_this_paddle_does_not_know_are_null(card, monkeypatch):
    import paddle

    monkeypatch.delattr(paddle.base.core, "get_cublas_switch")
    monkeypatch.delattr(paddle.version, "nccl")
    monkeypatch.delattr(paddle.device.cuda, "get_device_name")
    assert paddle_build.describe("gpu:1") == {**FACTS, "tf32_cublas": None, "nccl": None, "name": None}


@pytest.mark.parametrize(("text", "version"), DRIVERS.items())
def test_the_drivers_version_is_read_from_the_kernel(card, text, version):
    card.write_text(text)
    assert paddle_build.driver() == version
    card.unlink()
    assert paddle_build.driver() is None


def test_what_can_be_read_without_paddle_is_as_recorded(card):
    assert paddle_build.present() == {name: FACTS[name] for name in paddle_build.WITHOUT_PADDLE}


RECORD = {
    "dataset": {name: {} for name in ("train", "gallery", "query")},
    "versions": {},
    "config": None,
    "outputs": {},
    "device": "gpu:0",
}


def write_run(folder: Path, **more: object) -> Path:
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({**RECORD, **more}))
    (folder / "config.yaml").write_text("Global:\n  model: PP-ShiTuV2_rec\n")
    return folder


def test_verify_tells_runs_on_two_cards_apart(tmp_path, capsys):
    one = write_run(tmp_path / "one", gpu=FACTS)
    other = write_run(tmp_path / "other", gpu={**FACTS, "name": "Card B", "tf32_cudnn": False, "nccl": None})
    assert verify.main([str(one), str(other)]) == 0
    made = capsys.readouterr().out
    assert "  gpu name: Card gpu:1 | Card B\n" in made and "  gpu tf32_cudnn: True | False\n" in made
    assert "  gpu nccl: 22703 | absent\n" in made and "cuda: " not in made
    for more in ({}, {"gpu": None}):  # of earlier versions, and of a CPU
        cpu = write_run(tmp_path / f"cpu{len(more)}", **more)
        assert verify.main([str(cpu), str(cpu)]) == 0
        assert "gpu" not in capsys.readouterr().out
    old = tmp_path / "cpu0"
    assert verify.main([str(old), str(tmp_path / "cpu1")]) == 0 and "made" not in capsys.readouterr().out


def test_verify_tells_that_driver_and_wheel_have_changed_since_a_run(card, tmp_path, capsys):
    run = write_run(tmp_path / "run", gpu={**FACTS, "cuda": "11.8"})
    card.write_text(list(DRIVERS)[1])
    verify.main([str(run)])
    made = capsys.readouterr().out
    assert "  gpu driver: 470.199.02 | 550.54.15\n" in made and "  gpu cuda: 11.8 | 12.6\n" in made
    assert "cudnn" not in made and "name" not in made and "tf32" not in made


def test_a_hostile_record_of_a_gpu_is_refused(tmp_path):
    run = write_run(tmp_path / "run", gpu={"name": {"deep": "er"}})
    with pytest.raises(verify.FeatError, match="damaged"):
        verify.main([str(run)])
