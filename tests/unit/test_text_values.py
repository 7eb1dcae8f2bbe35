"""From the text of the command line, or of a YAML file, to the value of a key: names, null, paths, advice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.runs import run_here

from paddlex_feat.config import load
from paddlex_feat.config.schema import walk
from paddlex_feat.errors import ConfigError, DownloadError, OutputError
from paddlex_feat.fileio import paths, safe_yaml
from paddlex_feat.fileio.reading import decode_text
from paddlex_feat.hub.cache import cache_folder

NAMES = ("[a] b.jpg", "#1.jpg", "@x.jpg", "a: b.jpg", "- x.jpg", "%a.jpg", "&b.jpg", "*c.jpg", "!d.jpg", "|e.jpg",
         ">f.jpg", "'g.jpg", '"h.jpg', "?i", "? i.jpg", "{j}.jpg", "`k", "=l", "--- m.jpg", "&n o.jpg", "p # q.jpg",
         "r:", ": s", ", t", "u\tv", "w\nx.jpg", "caf\udce9.jpg", "!!python/object:os.system y", "!!int z",
         "!!bool maybe", "None.jpg")  # fmt: skip
PATH_KEYS = [key for key, info in walk() if "expand_home" in repr((info.annotation, info.metadata))]  # PathText


def faults(*words: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load.load("PP-ShiTuV2_rec", [load.split_override(word) for word in words])
    return caught.value.what


def config_of(*words: str) -> tuple[load.Config, list[str]]:
    return load.load("PP-ShiTuV2_rec", [load.split_override(word) for word in words])


# Text as it stands


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_taken_as_it_stands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for other in ("x.jpg", "m.jpg", "o.jpg", "a"):  # which YAML would read out of some
        Path(other).touch()
    assert load.split_override(f"Predict.input={name}") == ("Predict.input", name)
    for key in PATH_KEYS:
        assert load.split_override(f"{key}={name}") == (key, name)


@pytest.mark.parametrize("name", ["[p]", "{q}", "'r.jpg'", '"s.jpg"', "t.jpg ", " u.jpg", "0123", "1e5", "on", "~x"])
def test_a_file_of_exactly_this_name_wins(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path(name).touch()
    for key in ("Predict.input", "Global.output", "Evaluate.weight_path"):
        assert load.split_override(f"{key}={name}") == (key, name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[0123, 1e5, on, a.jpg]", ["0123", "1e5", "on", "a.jpg"]),
        ("[a\udcff.jpg, b.jpg]", ["a\udcff.jpg", "b.jpg"]),
        ("{img: 007}", {"img": "007"}),
        ("img: a.jpg", {"img": "a.jpg"}),
        ("- a\n- b", ["a", "b"]),
        ("0123", "0123"), ("1.10", "1.10"), ("+5", "+5"), ("yes", "yes"), ("1_000", "1_000"),
        ("'a b.jpg'", "a b.jpg"), ('"[a] b.jpg"', "[a] b.jpg"), ("null", None), ("~", "~"),
    ],
)  # fmt: skip
def test_inputs_are_names_lists_and_mappings(text, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load.split_override(f"Predict.input={text}")[1] == value


def test_the_scalars_of_inputs_in_a_file_are_names_too(tmp_path):
    (tmp_path / "a.yaml").write_text("Predict:\n  input: [0123, on, {img: 1.10}, a.jpg]\n")
    assert load.load(str(tmp_path / "a.yaml"), [])[0].Predict.input == ["0123", "on", {"img": "1.10"}, "a.jpg"]


@pytest.mark.parametrize("text", ["0123", "1_000", "1e5", "1.10", "+5", "on", "yes", "off", "True"])
def test_the_advice_on_quoting_repeats_the_text(text, tmp_path):
    advice = f"as text it is \"'{text}'\""
    for key in ("Global.output", "Global.dataset_dir", "Predict.model_dir"):
        assert f"{key} (-o): Input should be a valid string, got {text}; {advice}" in faults(f"{key}={text}")
    assert load.split_override(f"Global.output='{text}'")[1] == text  # what the advice says
    (tmp_path / "a.yaml").write_text(f"Global:\n  output: {text}\n")
    with pytest.raises(ConfigError) as caught:
        load.load(str(tmp_path / "a.yaml"), [])
    assert "a.yaml:2" in caught.value.what and advice in caught.value.what


@pytest.mark.parametrize(
    ("text", "meant"),
    [("0", "gpu:0 or cpu"), ("0,1", "gpu:0,1"), ("'2'", "gpu:2"), ("cuda:1", "gpu:1"), ("gpu0", "gpu:0"),
     ("cuda", "gpu"), ("cpu0", "cpu:0"), ("on", "auto, cpu or gpu")],
)  # fmt: skip
def test_a_device_by_another_name_is_answered_with_ours(text, meant):
    assert f"; write {meant}" in faults(f"Global.device={text}")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("Train.lr", "Train.learning_rate"),
        ("Train.epochs", "Train.epochs_iters"),
        ("lr", "Train.learning_rate"),
        ("Train.imgsz", "Train.input_size"),
        ("Global.save_dir", "Global.output"),
        ("Export.pretrained", "Train.pretrain_weight_path"),
        ("Evaluate.weightpath", "Evaluate.weight_path"),
        ("Trian.seed", "Train.seed"),
        ("Trian", "Train"),
    ],
)
def test_the_key_that_was_meant(given, meant):
    assert f"Did you mean {meant}?" in faults(f"{given}=3")


# Empty values and null


@pytest.mark.parametrize(
    ("key", "meaning"),
    [
        ("Predict.model_dir", "null: the official model"),
        ("Evaluate.weight_path", "null: the model's official weights"),
        ("Export.weight_path", "null: the model's official weights"),
        ("Train.pretrain_weight_path", "null: from scratch, nothing is downloaded"),
        ("Train.resume_path", "null: a new run"),
        ("Train.max_grad_norm", "null: no clipping"),
    ],
)
def test_an_empty_value_shows_how_to_write_null(key, meaning, tmp_path):
    expected = f"the value is empty; write {key}=null ({meaning})"
    assert f"{key} (-o): {expected}" in faults(f"{key}=")
    assert expected in faults(f"{key}=  ")
    if key != "Train.max_grad_norm":
        mode = key.partition(".")[0].lower()
        assert expected in faults(f'{key}=""', f"Global.mode={mode}")
        (tmp_path / "a.yaml").write_text(f"{key.replace('.', ': {')}: null}}\n")  # what files say keeps its meaning
        load.load(str(tmp_path / "a.yaml"), [])


@pytest.mark.parametrize("key", ["Global.output", "Global.mode", "Train.epochs_iters", "Predict.input"])
def test_an_empty_value_of_a_key_that_has_no_null(key):
    assert f"{key} (-o): the value is empty; give" in faults(f"{key}=")


def test_null_on_the_command_line_is_explained_in_one_line():
    words = ("Global.mode=train", "Train.max_grad_norm=null", "Train.early_stopping=null", "Predict.engine=null")
    assert config_of(*words)[1] == ["Train.max_grad_norm is null: no clipping.", "Train.early_stopping is null: never."]


# Paths


@pytest.mark.parametrize("key", PATH_KEYS)
def test_a_home_folder_is_expanded_in_every_path(key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    section, name = key.split(".")
    config, _ = config_of(f"{key}=~/x")
    assert getattr(getattr(config, section), name) == f"{tmp_path}/x"
    (tmp_path / "a.yaml").write_text(f"{section}:\n  {name}: ~/y\n")
    config, _ = load.load("~/a.yaml", [("Global.mode", "check_dataset")])
    assert getattr(getattr(config, section), name) == f"{tmp_path}/y"


def test_the_tilde_alone_and_that_of_a_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_of("Global.output=~")[0].Global.output == str(tmp_path)
    assert paths.expand_home("~root/x") == os.path.expanduser("~root/x") != "~root/x"  # noqa: PTH111
    assert "there is no user 'nobody_here'" in faults("Global.output=~nobody_here/x")
    monkeypatch.setenv("HOME", "")
    assert "no home folder" in faults("Global.output=~/x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("$HOME/out", "variables are not expanded here; write /home/me/out"),
        ("${HOME}/out", "write /home/me/out"),
        ("${oc.env:HOME}/out", "write /home/me/out"),
        ("runs/$HOME", "variables are not expanded here"),
        ("a${B}c", "write the path in full"),
        ("$(pwd)/out", "write the path in full"),
        ("%USERPROFILE%\\out", "variables are not expanded here"),
        ("C:\\out", "a path of Windows; write one of this system, such as /mnt/c/out"),
        ("d:/data/out", "/mnt/d/data/out"),
        ("\\\\server\\share", "a path of Windows"),
    ],
)
def test_what_is_no_path_of_this_system_is_refused_before_anything_is_made(text, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.chdir(tmp_path)
    for key, mode in (
        ("Global.output", "check_dataset"),
        ("Global.dataset_dir", "train"),
        ("Train.resume_path", "train"),
        ("Evaluate.weight_path", "evaluate"),
        ("Export.weight_path", "export"),
        ("Predict.model_dir", "predict"),
        ("Predict.input", "predict"),
    ):
        assert f"{key} (-o): " in (said := faults(f"{key}={text}", f"Global.mode={mode}")) and message in said
    if "\\" not in text:
        Path(text).mkdir(parents=True)
        assert config_of(f"Global.output={text}")[0].Global.output == text  # it exists under just this name
    config_of(f"Predict.model_dir={text}", "Global.mode=train")  # of another machine: the mode does not use it
    load.load("PP-ShiTuV2_rec", [("Global.dataset_dir", text)], usable=False)  # the record of another machine's run


@pytest.mark.parametrize("text", ["a$b", "50%_and_20%", "x/y$", "run:b", "~x.jpg", "a~/b", "cost$5", "100%"])
def test_names_that_only_resemble_that_are_fine(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if text[0] == "~":
        Path(text).touch()
    assert config_of(f"Global.output={text}")[0].Global.output == text


def test_an_output_with_backslashes_is_not_made_into_one_folder():
    assert "folders are separated by / here; write out/run" in faults("Global.output=out\\run")


@pytest.mark.parametrize(
    "words",
    [
        ("Global.output=0123",),
        ("Global.output=${HOME}/x",),
        ("Global.output=",),
        ("Global.output=null",),
        ("Global.outptu=x",),
        ("Global.save_dir=x", "Train.lr=3"),
        ("Global=5",),
    ],
)
def test_a_faulty_output_creates_nothing(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pairs = [load.split_override(word) for word in words]
    assert load.peek("PP-ShiTuV2_rec", pairs)["output"] == ""


def test_the_command_creates_nothing_for_a_faulty_output_or_a_missing_file(tmp_path):
    for words in (("-c", "PP-ShiTuV2_rec", "-o", "Global.output=1e5"), ("-c", "none.yaml"), ("-c", str(tmp_path))):
        done = run_here(*words, cwd=tmp_path)
        assert done.returncode == 1 and "ERROR: " in done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())
    done = run_here("-c", "PP-ShiTuV2_rec", "-o", "Train.lr=3", "-o", "Global.output=here", cwd=tmp_path)
    assert done.returncode == 1 and (tmp_path / "here/check_dataset_result.json").is_file()


def test_a_configuration_that_is_a_folder_or_has_a_near_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("folder.yaml").mkdir()
    Path("Mine.yaml").touch()
    for given, message in (
        ("folder.yaml", "folder.yaml is a folder; give a file in it."),
        ("mine.yaml", "Did you mean Mine.yaml (upper and lower case differ)?"),
        ("mine.yml", "Did you mean Mine.yaml?"),
        ("PP-ShiTuV2_rek", "Did you mean PP-ShiTuV2_rec?"),
    ):
        with pytest.raises(ConfigError) as caught:
            load.load(given, [])
        assert message in caught.value.what


def test_the_cache_and_saved_results_take_a_home_folder(tmp_path, monkeypatch):
    import numpy as np

    from paddlex_feat import save_features
    from paddlex_feat.inference.results import FeatureResult

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", "~/cache")
    assert cache_folder() == tmp_path / "cache"
    result = FeatureResult("a.jpg", np.ones(2, np.float32), "a", 1)
    assert result.save_to_json("~/results") == tmp_path / "results/a_res.json"
    assert save_features([result], "~/a.npz") == tmp_path / "a.npz"
    with pytest.raises(OutputError, match="variables are not expanded"):
        save_features([result], "${HOME}/a.npz")
    for path in ("$HOME/x", "C:\\x", "a\\b.json"):
        with pytest.raises(OutputError):
            result.save_to_json(path)
    monkeypatch.setenv("PADDLE_PDX_CACHE_HOME", "$HOME/cache")
    with pytest.raises(DownloadError, match="variables are not expanded"):
        cache_folder()


# Encodings


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-8-sig"])
def test_yaml_in_utf_16_is_read_with_a_notice(encoding, tmp_path):
    (tmp_path / "a.yaml").write_bytes("Global:\n  mode: train\n  output: 图片\n".encode(encoding))
    config, notices = load.load(str(tmp_path / "a.yaml"), [])
    assert config.Global.output == "图片" and config.Global.mode == "train"
    assert [f"{tmp_path}/a.yaml is UTF-" in n for n in notices] == ([] if "8" in encoding else [True])


@pytest.mark.parametrize("data", [b"", b"a", b"a\0", b"ab: c\n", b"\0\0\0\0", "é: ü\n".encode()])
def test_other_texts_are_not_taken_for_utf_16(data):
    assert decode_text(data) == (data.decode(), "utf-8")


def test_a_value_that_a_message_needs_keeps_its_text():
    assert load.split_override("Global.output=1e5")[1] == safe_yaml.Scalar(1e5, "1e5")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs_$SLURM_JOB_ID", "write runs_71"),
        ("runs/exp-$NOT_SET/x", "write the path in full"),
        ("exp_%DATE%", "variables are not expanded here"),
        ("E:", "it is a path of Windows"),
        ("C:out", "it is a path of Windows"),
        ("file:///tmp/zz", "write /tmp/zz"),
        ("s3://bucket/x", "it is an address"),
        ("hdfs://host/x", "it is an address"),
        ("`pwd`/x", "commands are not run here"),
    ],
)
def test_outputs_that_are_no_folders_of_this_machine_are_refused(text, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "71")
    assert message in faults(f"Global.output={text}")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["~/zz.jpg", "~"])
def test_the_home_folder_is_expanded_in_inputs(name, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert config_of(f"Predict.input={name}", "Global.mode=predict")[0].Predict.input == name  # its reader expands it


@pytest.mark.parametrize("section", ["Global", "Train", "Predict.kernel_option"])
def test_a_section_cannot_be_empty_on_the_command_line(section):
    with pytest.raises((ConfigError, ValueError)):
        config_of("Global.output=o", f"{section}=")


def test_an_empty_value_in_yaml_is_called_empty(tmp_path):
    (tmp_path / "a.yaml").write_text("Global:\n  device:\n")
    with pytest.raises(ConfigError, match="got an empty value"):
        load.load(str(tmp_path / "a.yaml"), [])
