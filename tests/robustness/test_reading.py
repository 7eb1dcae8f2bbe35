"""Pipes, devices and endless files where a file is expected: an error at once, no waiting, no memory filled."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import ROOT, run_main

from paddlex_feat.config.load import load
from paddlex_feat.data.converters import labelme
from paddlex_feat.data.readers.shitu_rec import read_list
from paddlex_feat.errors import ConfigError, DatasetError, OutputError, WeightsError
from paddlex_feat.fileio import atomic, locks, safe_yaml
from paddlex_feat.fileio.reading import read_small
from paddlex_feat.inference.model_info import read_info

KINDS = ("pipe", "endless", "sparse", "folder")


def place(path: Path, kind: str) -> Path:
    """Something at `path` that must not be read to its end."""
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 2**34)
    return path


def bounded_main(*words: str) -> subprocess.CompletedProcess[str]:
    """main.py with 4 GiB of addresses and 60 s."""

    def bound() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))

    command = [sys.executable, "main.py", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, preexec_fn=bound)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_file_or_too_long_is_an_os_error(tmp_path, kind):
    with pytest.raises(OSError, match=r"not a file|bytes that are read|Is a directory"):
        read_small(place(tmp_path / "x", kind), 1000)


def test_files_are_read_whole_up_to_the_limit(tmp_path):
    path = tmp_path / "x"
    for size in (0, 1, 999, 1000):
        path.write_bytes(b"x" * size)
        assert read_small(path, 1000) == b"x" * size
    path.write_bytes(b"x" * 1001)
    with pytest.raises(OSError, match="more than the 1,000 bytes"):
        read_small(path, 1000)
    with pytest.raises(FileNotFoundError):
        read_small(tmp_path / "none", 1000)
    assert b"VmHWM" in read_small(Path("/proc/self/status"), 100_000)  # whose size is said to be 0


@pytest.mark.parametrize("kind", [*KINDS, "deep"])
def test_results_and_run_records(tmp_path, kind):
    path = tmp_path / "run.json"
    path.write_text("[" * 200_000) if kind == "deep" else place(path, kind)
    assert atomic.read_result(path) == {}
    done = bounded_main("verify", str(tmp_path))
    assert done.returncode == 1 and "run.json is missing or damaged" in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["train_result.json", "train.log"])
def test_a_training_into_a_folder_with_such_a_file_ends_with_a_word(tmp_path, kind, name):
    place(tmp_path / name, kind)
    done = bounded_main(
        "-c", "PP-ShiTuV2_rec", "-o", "Global.mode=train", "-o", f"Global.output={tmp_path}", "-o", "x=1"
    )
    assert done.returncode == 1 and "unknown key" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("kind", ["pipe", "endless", "folder"])
def test_a_log_that_is_no_file_is_named(tmp_path, kind):
    place(tmp_path / "check_dataset.log", kind)
    done = run_main("-c", "PP-ShiTuV2_rec", "-o", f"Global.output={tmp_path}", "-o", "Global.dataset_dir=nowhere")
    assert done.returncode == 1 and str(tmp_path / "check_dataset.log") in done.stderr, done.stderr
    assert len(done.stderr.splitlines()) == 3
    with pytest.raises(OutputError), locks.locked(tmp_path / "check_dataset.log"):
        pass


@pytest.mark.parametrize("kind", KINDS)
def test_lists_and_class_names(tmp_path, kind):
    records, findings = read_list(tmp_path, place(tmp_path / "train.txt", kind).stem)
    assert not records and [f.code for f in findings] == ["list-missing"] and "cannot be read" in findings[0].message
    (tmp_path / "annotations").mkdir()
    place(tmp_path / "annotations/a.json", kind)
    place(tmp_path / "label.txt", kind)
    if kind == "sparse":  # a regular one is meant
        with pytest.raises(DatasetError, match="class names cannot be read: it has more"):
            labelme.convert(tmp_path)
        (tmp_path / "label.txt").unlink()
    codes = {f.code for f in labelme.convert(tmp_path).findings}
    assert "labelme-not-json" in codes or kind == "folder"


@pytest.mark.parametrize("kind", KINDS)
def test_yaml_files(tmp_path, kind):
    path = place(tmp_path / "inference.yml", kind)
    with pytest.raises(WeightsError, match="cannot be read"):
        read_info(tmp_path)
    with pytest.raises(ConfigError, match="cannot be read: it has more" if kind == "sparse" else "cannot be used"):
        load(str(path), [])
    done = bounded_main("-c", str(path), "-o", f"Global.output={tmp_path / 'out'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert not json.loads((tmp_path / "out/check_dataset_result.json").read_text())["done_flag"]


def test_a_configuration_that_is_too_long_says_what_to_do(tmp_path):
    for text in ("#" * (safe_yaml.MAX_CHARACTERS + 1), "#" * (4 * safe_yaml.MAX_CHARACTERS + 1)):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(ConfigError) as error:
            load(str(tmp_path / "c.yaml"), [])
        assert "more than" in error.value.what and "that line" not in error.value.fix
