"""scripts/accept_gpu.py: what it does on a machine without GPU, and how failures come out."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from support.runs import ROOT

pytest.importorskip("paddle")
import accept
import accept_gpu
from accept.bench import Bench, Failed, NotRun

# Checks, or lines of them, that no CPU can run.
NEED_A_GPU = {
    (1, "card, driver, CUDA, cuDNN, NCCL, TF32"),
    (3, "mixed precision"),
    (3, "overflow"),
    (4, "max_grad_norm O2"),
    (8, "predict on cpu, PP-ShiTuV2_rec, precision fp16: least cosine"),
    (8, "predict on cpu, CLIP, precision fp16: least cosine"),
    (10, "tuned"),
    (11, "launches and synchronisations of a step"),
    (12, "out of memory"),
    (13, "train on gpu:2,3"),
    (14, "contexts on the GPUs by two workers"),
}


@pytest.mark.nightly
def test_dry_runs_on_a_cpu_what_can_be_run_there(tmp_path):
    report = tmp_path / "report.json"
    command = [sys.executable, "scripts/accept_gpu.py", "--dry", "--json", str(report)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FLAGS_")}  # the tests' own
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    content = json.loads(report.read_text())
    failed = [line for line in content["lines"] if line["verdict"] == "FAIL"]
    assert not failed and done.returncode == 0, done.stdout
    lines = content["lines"]
    not_run = {(line["item"], line["name"]) for line in lines if line["verdict"] == "not run"}
    optional = {name for name in not_run if "bf16" in name[1] or "onnx" in name[1] or "openvino" in name[1]}
    assert not_run - optional == NEED_A_GPU
    assert {line["item"] for line in lines if line["verdict"] == "ok"} == set(range(1, 15)) - {3}
    assert content["ok"] == len(lines) - len(not_run) and f"{content['ok']} ok, 0 FAIL" in done.stdout


def test_without_a_gpu_it_names_the_way_to_go(capsys):
    assert accept_gpu.main([]) == 2
    assert "--dry" in capsys.readouterr().err


@pytest.mark.parametrize("items", ["0", "15", "3,x", "", "1,,2", "-1"])
def test_an_item_that_is_not_there_is_a_usage_error(items, capsys):
    with pytest.raises(SystemExit) as ended:
        accept_gpu.main(["--dry", f"--items={items}"])
    assert ended.value.code == 2
    assert "is not a number from 1 to 14" in capsys.readouterr().err


def test_two_queries_may_be_ranked_otherwise(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data/query.txt").write_text("a.pgm 0\n" * 180)
    bench, whole = Bench(8, "cpu", 0, tmp_path), {"recall1": 0.5, "recall5": 0.75, "mAP": 0.6}
    assert bench.metrics_agree({**whole, "recall1": 0.5 + 2 / 180, "mAP": 0.6 - 1 / 180}, whole)
    assert not bench.metrics_agree({**whole, "recall5": 0.75 - 3 / 180}, whole)
    assert not bench.metrics_agree({**whole, "mAP": 0.62}, whole)


def test_every_item_of_the_list_is_there():
    assert sorted(accept.ITEMS) == list(accept_gpu.ITEMS) == list(range(1, 15))
    assert all(check.__doc__ for checks in accept.ITEMS.values() for check in checks)


def good(bench):
    """A check that passes, and one that does not."""
    yield bench.line("first", 0.5, "<= 1")
    yield bench.line("second", 2.0, "<= 1", 2.0 <= 1)


def refused(bench):
    """A check that this machine cannot run."""
    bench.require_gpus(2)
    yield from ()


def broken(bench):
    """A check that raises."""
    raise ValueError("two\nlines")
    yield


def incomplete(bench):
    """A check whose command failed."""
    raise Failed("exit code 1")
    yield


def test_each_check_ends_in_a_line_and_the_others_follow(tmp_path, monkeypatch):
    monkeypatch.setitem(accept.ITEMS, 1, (broken, incomplete, refused, good))
    saved = [accept_gpu.os.dup(number) for number in (1, 2)]
    try:
        assert accept_gpu._run_item(1, 1, tmp_path, tmp_path / "lines") == 0
    finally:
        for number, copy in zip((1, 2), saved, strict=True):
            accept_gpu.os.dup2(copy, number)
            accept_gpu.os.close(copy)
    lines = [json.loads(text) for text in (tmp_path / "lines").read_text().splitlines()]
    assert [line["verdict"] for line in lines] == ["FAIL", "FAIL", "not run", "ok", "FAIL"]
    assert lines[0]["reason"] == "ValueError: two lines" and lines[2]["reason"] == "needs 2 GPUs"
    assert (lines[4]["figure"], lines[4]["bound"]) == ("2", "<= 1")


def test_an_item_whose_process_crashes_is_a_failure_and_the_report_is_written(tmp_path, capsys):
    report = tmp_path / "report.json"
    assert accept_gpu._run_all([99], 0, tmp_path, report) == 1
    content = json.loads(report.read_text())
    assert content["FAIL"] == 1 and "KeyError: 99" in content["lines"][0]["reason"]
    assert "0 ok, 1 FAIL, 0 not run" in capsys.readouterr().out


def test_only_a_gpu_counts_as_one(tmp_path):
    with pytest.raises(NotRun, match="needs a GPU"):
        Bench(1, "cpu", 0, tmp_path).require_gpus()
    Bench(1, "gpu:0", 1, tmp_path).require_gpus()
    assert not Bench(1, "cpu", 0, tmp_path).gpu
