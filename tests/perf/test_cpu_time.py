"""CPU time of what must stay cheap. Of a busy machine, the CPU's time says more than the clock's."""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from support.runs import run_main

from paddlex_feat.checks import files
from paddlex_feat.checks.context import CheckSettings, DataSet
from paddlex_feat.checks.image_info import ImageInfo
from paddlex_feat.data import samplers
from paddlex_feat.data.converters import labelme
from paddlex_feat.data.readers.shitu_rec import read_list
from paddlex_feat.fileio import lookup
from paddlex_feat.runtime import paddle_build


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process."""
    began = time.process_time()
    work()
    return time.process_time() - began


def command_seconds(*words: str) -> float:
    """CPU time of one call of main.py."""
    return child_seconds(lambda: run_main(*words))


def child_seconds(work: Callable[[], object]) -> float:
    """CPU time of the processes that this starts and waits for."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_help_and_a_configuration_error_take_little_more_than_the_libraries_they_need(tmp_path):
    """0.3 s on a fast machine, 0.5 on a slow one, where the libraries alone take 0.2."""
    libraries = [sys.executable, "-c", "import argparse, logging, pydantic, pydantic.main, yaml"]
    wrong = ("-c", "PP-ShiTuV2_rec", "-o", "Train.batchsize=1", "-o", f"Global.output={tmp_path}")
    for words in (("--help",), wrong):
        pairs = [
            command_seconds(*words) / child_seconds(lambda: subprocess.run(libraries, check=True)) for _ in range(7)
        ]
        assert statistics.median(pairs) < 3, pairs


def test_the_search_for_paddles_wheels_takes_less_than_two_milliseconds():
    assert min(cpu_seconds(paddle_build.installed) for _ in range(20)) < 2e-3


def test_the_loss_of_many_classes_takes_no_time_by_their_square():
    paddle = pytest.importorskip("paddle")
    from paddlex_feat.losses.label_smoothing import LabelSmoothingCrossEntropy

    logits, labels = paddle.rand([8, 100_000]), paddle.arange(8)
    logits.stop_gradient = False
    loss = LabelSmoothingCrossEntropy()
    assert cpu_seconds(lambda: loss(logits, labels).backward()) < 3  # by log_softmax more than ten seconds


def test_a_batch_costs_no_pass_over_all_classes():
    classes, rng = 200_000, np.random.default_rng(0)
    sampler, chance = samplers.PKSampler(np.arange(classes), 64, 4, 0), np.full(classes, 1 / classes)

    def seconds(draw: Callable[[], object]) -> float:
        return cpu_seconds(lambda: [draw() for _ in range(100)])

    assert seconds(lambda: sampler._draw_classes(rng, 16)) < seconds(lambda: rng.choice(classes, 16, False, chance)) / 5
    assert cpu_seconds(lambda: next(sampler.epoch(0))) < 0.5  # an epoch is drawn as it goes


def test_a_hundred_thousand_missing_images_are_explained_cheaply(tmp_path):
    (tmp_path / "images").mkdir()
    for number in range(1000):
        (tmp_path / f"images/{number}.png").touch()
    (tmp_path / "train.txt").write_text("".join(f"images/{n}.PNG 0\n" for n in range(100_000)))
    records, _ = read_list(tmp_path, "train")
    gone = ImageInfo("image-missing", "The file does not exist.")
    found = DataSet(tmp_path, {"train": records}, dict.fromkeys(records.files(), gone))
    settings = CheckSettings(batch_size=4, samples_per_class=2, num_classes=None, workers=1, input_size=16)
    findings: list = []
    assert cpu_seconds(lambda: findings.extend(files.check_images(found, settings))) < 5 and len(findings) == 100_000
    assert "Did you mean images/7.png (upper and lower case differ)?" in findings[7].message


def test_a_hundred_thousand_missing_files_are_cheap(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("Data/Images").mkdir(parents=True)
    for number in range(2000):
        Path(f"Data/Images/{number:06}.JPG").touch()
    find, hints = lookup.Lookup("Data").explain, set()
    paths = [f"Data/Images/{number:06}.jpg" for number in range(20_000)]
    assert cpu_seconds(lambda: hints.update(find(path, "file") for path in paths)) < 5
    assert len(hints) == 2001  # and "" for those that are nowhere


def test_many_images_of_one_name_are_matched_fast(tmp_path):
    (tmp_path / "annotations").mkdir()
    picture = cv2.imencode(".png", np.zeros((8, 8, 3), np.uint8))[1].tobytes()
    (tmp_path / "label.txt").write_text("cat\ndog\n")
    for i in range(1500):
        (tmp_path / f"images/s{i}").mkdir(parents=True)
        (tmp_path / f"images/s{i}/01.png").write_bytes(picture)
        content = {"version": "5.5.0", "imagePath": f"C:\\me\\s{i}\\01.png", "flags": {"cat": True}, "shapes": []}
        (tmp_path / f"annotations/{i}.json").write_text(json.dumps(content))
    converted: list = []
    assert cpu_seconds(lambda: converted.append(labelme.convert(tmp_path))) < 10
    assert len(converted[0].paths) == 1500 and not converted[0].findings
