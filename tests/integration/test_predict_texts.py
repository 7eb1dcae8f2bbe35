"""Mode predict with awkward names, and what it says of an input that fails."""

from __future__ import annotations

import copy
import json
import os
import pickle
import shutil
from pathlib import Path

import pytest

pytest.importorskip("paddle")

from paddlex_feat.config import load
from paddlex_feat.errors import ImageError
from paddlex_feat.inference.results import Failed
from paddlex_feat.modes import predict
from paddlex_feat.modes.predictor import failures_of
from paddlex_feat.runtime.distributed import ProcessGroup


def run(run_folder: Path, output: Path, text: str) -> list[str]:
    """The inputs of which `-o Predict.input=TEXT` gives features."""
    words = (
        "Global.mode=predict",
        "Global.device=cpu",
        "Predict.save_format=jsonl",
        f"Predict.model_dir={run_folder}/best_model/inference",
        f"Predict.input={text}",
    )
    config = load.load("PP-ShiTuV2_rec", [load.split_override(word) for word in words])[0]
    predict.run(config, output, ProcessGroup())
    return [json.loads(line)["input_path"] for line in (output / "features.jsonl").read_text().splitlines()]


@pytest.fixture
def place(tmp_path, monkeypatch, files) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    Path("home").mkdir()
    for name in ("x.jpg", "- x.jpg", "#1.jpg", "[a] b.jpg", "0123", "caf\udce9.jpg", "home/h.jpg"):
        shutil.copy(files[0], name)
    return tmp_path


@pytest.mark.parametrize("name", ["- x.jpg", "#1.jpg", "[a] b.jpg", "0123", "caf\udce9.jpg"])
def test_the_file_of_that_name_is_predicted(place, run_folder, name):
    assert run(run_folder, place / "out", name) == [name]


def test_a_list_of_names_and_a_home_folder(place, run_folder):
    listed = run(run_folder, place / "out", "[0123, '#1.jpg', ~/h.jpg, {img: x.jpg}]")
    assert listed == ["0123", "#1.jpg", str(place / "home/h.jpg"), "x.jpg"]


def test_a_name_is_never_taken_for_another_file(place, run_folder):
    os.remove("- x.jpg")  # noqa: PTH107
    with pytest.raises(ImageError, match=r"- x\.jpg: The input does not exist"):
        run(run_folder, place / "out", "- x.jpg")


def test_one_failed_input_keeps_its_own_advice(place, run_folder):
    Path("notes.md").write_text("text")
    with pytest.raises(ImageError) as caught:
        run(run_folder, place / "out", "notes.md")
    assert ".md is not an image" in caught.value.fix and "Replace them" not in str(caught.value)


def test_the_advice_for_several_failed_inputs():
    same = [Failed("a", "Bad.", "Do this."), Failed("b", "Bad.", "Do this.")]
    assert failures_of(same, "", "Predict.input").fix == "Do this."
    others = [*same, Failed("c", "Worse.", "Do that."), Failed("d", "Unknown.")]
    error = failures_of(others, "; the others are kept", "Predict.input")
    assert (
        "a: Bad. Do this.\n" in error.what
        and "c: Worse. Do that.\n" in error.what
        and error.what.endswith("d: Unknown.")
    )
    assert error.fix == "Replace or remove them."


def test_a_failed_input_is_a_pair_that_can_be_copied_and_pickled():
    failed = Failed("a.jpg", "Bad.", "Do this.")
    name, what = failed
    assert failed == (name, what) == ("a.jpg", "Bad.")
    for other in (copy.deepcopy(failed), pickle.loads(pickle.dumps(failed))):
        assert other == failed and other.fix == "Do this."


def test_a_failed_line_of_a_list_keeps_its_line(place, run_folder, caplog):
    Path("list.txt").write_text("x.jpg\n0123 7\nnope.jpg\n*.jpg 3\nhome/*/\n")
    with pytest.raises(ImageError) as caught:
        run(run_folder, place / "out", "list.txt")
    text, patterns = str(caught.value), "Patterns are expanded only where they are the input itself"
    assert "nope.jpg: list.txt:3: The input does not exist." in text and "list.txt:3" in caplog.text
    for line in (4, 5):
        assert f"list.txt:{line}: The input does not exist." in text
    assert text.count(patterns) == 2
    Path("patterns.txt").write_text("*.jpg\n")
    with pytest.raises(ImageError, match=patterns):
        run(run_folder, place / "out", "patterns.txt")


def test_failures_of_a_list_name_the_path_first(place, run_folder):
    from paddlex_feat import create_model

    Path("bad.jpg").write_text("text")
    Path("list.txt").write_text("x.jpg\nbad.jpg\nnope.jpg\n")
    model = create_model("PP-ShiTuV2_rec", run_folder / "best_model/inference", device="cpu")
    assert len(list(model.predict(["absent.jpg", "list.txt"], on_error="skip"))) == 1
    assert [name for name, _ in model.failed] == ["absent.jpg", "bad.jpg", "nope.jpg"]
    starts = ["The input", "list.txt:2: The image", "list.txt:3: The input"]
    assert all(what.startswith(start) for (_, what), start in zip(model.failed, starts, strict=True))


def test_a_list_that_turns_into_utf16_names_the_line(place, run_folder):
    Path("list.txt").write_bytes("x.jpg\n红.jpg\n".encode() + "照片.jpg\r\n0123\r\n".encode("utf-16-le"))
    with pytest.raises(ImageError, match="UTF-16 from line 3 on") as caught:
        run(run_folder, place / "out", "list.txt")
    assert "Write line 3 and those after it again as UTF-8" in caught.value.fix
