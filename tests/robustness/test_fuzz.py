"""Hostile input, by seed; and the cases that once came through, each as a test of its own."""

from __future__ import annotations

import time

import pytest
from support.fuzz import images, texts
from support.fuzz.runner import run
from support.fuzz.targets import CASES, TARGETS
from support.fuzz.yaml_attacks import laughs

from paddlex_feat.config import load
from paddlex_feat.data.images.decode import decode_bgr
from paddlex_feat.errors import ConfigError, FeatError, ImageError, WeightsError
from paddlex_feat.fileio import safe_yaml
from paddlex_feat.inference.model_info import read_info

SHORT = {
    "config": 60,
    "override": 200,
    "list": 60,
    "labelme": 200,
    "info": 100,
    "archive": 150,
    "parameters": 300,
    "weights": 400,
}


def passed(name: str, cases: int, seed: int) -> None:
    if name == "weights":  # its sound files are Paddle's own
        pytest.importorskip("paddle")
    tally = run(name, cases, seed)
    assert not tally.failures
    assert sum(tally.outcomes.values()) == cases
    assert 0 < tally.outcomes["accepted"] < cases  # the cases reach both ends


@pytest.mark.parametrize("name", [name for name in TARGETS if name != "largest"])
def test_hostile_input_is_refused_in_the_programs_own_words(name):
    passed(name, SHORT.get(name, 100), seed=1)


@pytest.mark.nightly
@pytest.mark.parametrize("name", TARGETS)
def test_hostile_input_at_length(name):
    passed(name, max(CASES[name] // 12, 11), seed=2)


def test_crashes_hangs_and_foreign_exceptions_are_seen_and_the_next_cases_still_run():
    tally = run("faulty", 6)
    assert sorted(tally.failures) == [1, 2, 3, 4]
    for number, words in enumerate(("exit code -11", "not ours", "exit code 3", "MiB"), 1):
        assert words in tally.failures[number]
    assert tally.outcomes == {"accepted": 3, "RuntimeError": 1}
    tally = run("faulty", 2, first=6, patience=1)
    assert list(tally.failures) == [6] and "hangs" in tally.failures[6]
    assert tally.outcomes == {"accepted": 1}


def test_a_case_depends_on_its_seed_and_number_alone():
    target = texts.LABELME
    assert target.case(500, 3) == target.case(500, 3)
    assert len({target.case(number, seed) for number in range(100, 150) for seed in (1, 2)}) > 90


# --- found by it ---


@pytest.mark.parametrize(
    "text",
    [
        "a: !!timestamp x",
        "a: !!bool maybe",
        "a: !!binary A",
        "a: !!set {b}",
        "a: !x 1",
        "a: !!int [1]",
        "a: !!float {}",
    ],
)
def test_tags_that_do_not_fit_are_an_error_of_the_file(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match="Not valid YAML"):
        load.load(str(tmp_path / "a.yaml"), [])


def test_values_nested_too_deeply_to_be_printed_are_an_error(tmp_path):
    (tmp_path / "a.yaml").write_text("Train: {epochs_iters: " + "{a: " * 200 + "1" + "}" * 201)
    with pytest.raises(ConfigError, match="more than 50 levels"):
        load.load(str(tmp_path / "a.yaml"), [])


def test_a_key_of_thousands_of_parts_is_an_error(tmp_path):
    (tmp_path / "a.yaml").write_text("Global: {mode: train}")
    with pytest.raises(ConfigError, match="so many parts"):
        load.load(str(tmp_path / "a.yaml"), [("Train.augment.pad" + ".pad" * 5000, 1)])


def test_thousands_of_misspelt_keys_are_reported_at_once_and_in_brief(tmp_path):
    (tmp_path / "a.yaml").write_text("Train: {" + ", ".join(f"batch_siz{n}: [1]" for n in range(3000)) + "}")
    started = time.process_time()
    with pytest.raises(ConfigError, match=r"Did you mean Train\.batch_size\?") as caught:
        load.load(str(tmp_path / "a.yaml"), [])
    assert "more" in str(caught.value) and len(str(caught.value)) < 10_000
    assert time.process_time() - started < 5


def test_a_text_that_the_loader_would_take_minutes_for_is_refused():
    with pytest.raises(ConfigError, match="more than 400000 characters"):
        safe_yaml.parse("[" * 10 + "a," * 200_000, "a.yaml")


def test_no_more_values_are_read_than_may_be_there():
    """The rest of such a text took ten seconds on a slow machine before its error was found."""
    with pytest.raises(ConfigError, match="more than 10000 values"):
        safe_yaml.parse("[" * 10 + "a," * 50_000 + "}", "a.yaml")


def test_what_a_message_quotes_is_bounded():
    error = FeatError("x" * 10**6, where="y" * 10**6, fix="z" * 10**6)
    assert len(str(error)) < 31_000 and len(error.args[0]) < 11_000


@pytest.mark.parametrize("resize", ["{size: [224, *a29]}", "{size: 224, interpolation: *a29}"])
def test_aliases_of_aliases_do_not_hang_the_reader_of_inference_yml(tmp_path, resize):
    (tmp_path / "inference.yml").write_bytes(texts.ops(resize, before=laughs(30)))
    with pytest.raises(WeightsError, match="more than 10000 values"):
        read_info(tmp_path)


@pytest.mark.parametrize("std", ["1e-320", "1e-300", "0"])
def test_a_normalisation_that_float32_does_not_hold_is_refused(tmp_path, std):
    (tmp_path / "inference.yml").write_bytes(texts.ops("{size: 224}", f"{{mean: [0, 0, 0], std: [{std}, 1, 1]}}"))
    with pytest.raises(WeightsError, match="not a usable number"):
        read_info(tmp_path)


@pytest.mark.parametrize("size", [(7000, 8000, 1000), (2600, 2600, 400), (64, 64, 2000), (10000, 10900, 2)])
def test_a_jpeg_of_too_many_scans_is_refused_unread(size):
    started = time.process_time()
    with pytest.raises(ImageError, match="scans are too many"):
        decode_bgr(images.scans_jpeg(*size), "a.jpg")
    assert time.process_time() - started < 1


@pytest.mark.parametrize("kind", [b"IHDR", b"IDAT"])
def test_a_png_whose_chunks_claim_gigabytes_is_refused_unread(kind):
    data = images.PNG.sound()[0]
    at = data.index(kind) - 4
    with pytest.raises(ImageError, match="chunks are longer than the file"):
        decode_bgr(data[:at] + b"\xff\0\0\0" + data[at + 4 :], "a.png")


def test_a_progressive_jpeg_is_read():
    assert decode_bgr(images.scans_jpeg(300, 200, 3), "a.jpg").shape == (200, 300, 3)


@pytest.mark.parametrize("data", [b"\0\0\0\x0cjP  \r\n\x87\n", b"#?RADIANCE\n", b"P7\nWIDTH 4\n", b"PF\n4 4\n-1\n"])
def test_formats_that_are_not_promised_do_not_reach_a_decoder(data):
    with pytest.raises(ImageError, match=r"it is (not a JPEG, PNG|a JPEG 2000 file)"):
        decode_bgr(data, "a.jpg")
