"""run.json and the command verify: what a run was made from, what came out, and whether that still holds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import QUICK, ROOT, run_here, run_main, train_here

from paddlex_feat.cli import main
from paddlex_feat.config import aliases
from paddlex_feat.config.load import load
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.provenance import lineage, run_record

pytest.importorskip("paddle")
SAME = "the same (images: by path, label and size, not by content)\n"


@pytest.fixture
def run(run_folder, tmp_path) -> Path:
    shutil.copytree(run_folder, tmp_path / "run")
    return tmp_path / "run"


def verify(capsys, *words: str | Path) -> tuple[int, str]:
    """Exit code, and what was printed."""
    code = main(["verify", *map(str, words)])
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def test_the_manifest_holds_hashes_of_configuration_and_outputs(run_folder):
    record = json.loads((run_folder / "run.json").read_text())
    names = ["best_model/best_model.pdparams", "latest/inference/inference.pdiparams", "train_result.json"]
    for name in names:
        assert record["outputs"][name] == hashlib.sha256((run_folder / name).read_bytes()).hexdigest()
        assert record["sizes"][name] == (run_folder / name).stat().st_size
    assert record["config"] == hashlib.sha256((run_folder / "config.yaml").read_bytes()).hexdigest()
    assert not any(name.endswith((".log", ".jsonl", ".png")) for name in record["outputs"])
    assert record["threads"] == os.environ["OMP_NUM_THREADS"] and record["processor"]  # QUICK sets none of its own


def change(run: Path, **values: object) -> None:
    """Put other values into run.json; None takes a key out."""
    record = {**json.loads((run / "run.json").read_text()), **values}
    (run / "run.json").write_text(json.dumps({k: v for k, v in record.items() if v is not None}))


def test_a_run_as_it_ended_is_the_same(run, capsys):
    assert verify(capsys, run) == (0, SAME)


def test_a_typing_error_in_a_later_command_does_not_spoil_it(run, capsys):
    done = run_here(
        "-c",
        "PP-ShiTuV2_rec",
        *(w for s in (f"Global.output={run}", "Global.mode=train", "Train.epoch=3") for w in ("-o", s)),
    )
    assert done.returncode == 1 and "Train.epoch" in done.stderr
    assert verify(capsys, run)[0] == 0


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("best_model/best_model.pdparams", "best_model/best_model.pdparams: "),
        ("train_result.json", "train_result.json: "),
        ("config.yaml", "config.yaml: "),
    ],
)
def test_a_changed_byte_is_told(run, capsys, name, told):
    (run / name).write_bytes((run / name).read_bytes() + b"\n")
    code, text = verify(capsys, run)
    assert code == 1 and told in text and "1 differences" in text


def test_files_that_are_gone_or_new_are_told(run, capsys):
    (run / "latest/latest.pdopt").unlink()
    (run / "best_model/more").touch()
    code, text = verify(capsys, run)
    assert code == 1 and "| absent" in text and "best_model/more: absent | not recorded" in text


def test_other_packages_and_other_data_are_told(run, capsys, monkeypatch):
    monkeypatch.setattr(
        run_record, "versions", lambda: {**json.loads((run / "run.json").read_text())["versions"], "x": "9"}
    )
    record = json.loads((run / "run.json").read_text())
    record["dataset"]["query"]["images"] = 11
    (run / "run.json").write_text(json.dumps(record))
    code, text = verify(capsys, run)
    assert code == 1 and "version of x: absent | 9" in text and "data set, query: 11, " in text


def test_a_data_set_that_is_gone_is_told(run, capsys):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("dataset_dir: ", "dataset_dir: /nowhere"))
    code, text = verify(capsys, run)
    assert code == 1 and "data set: " in text


def test_a_run_that_was_interrupted_has_no_outputs(run, capsys):
    record = json.loads((run / "run.json").read_text())
    del record["outputs"]
    (run / "run.json").write_text(json.dumps(record))
    code, text = verify(capsys, run)
    assert code == 1 and "has not ended" in text
    other = run.with_name("other")
    shutil.copytree(run, other)
    code, text = verify(capsys, run, other)
    assert code == 1 and text.count("the run has not ended") == 2 and text.endswith("\n2 differences\n")


def test_a_record_of_an_earlier_version_is_understood(run, capsys):
    change(run, sizes=None, threads=None, processor=None)
    assert verify(capsys, run) == (0, SAME)


def test_another_kernel_or_processor_is_told_and_makes_no_difference(run, capsys):
    versions = json.loads((run / "run.json").read_text())["versions"]
    change(run, versions={**versions, "platform": "Linux-1"}, processor="Abacus")
    code, text = verify(capsys, run)
    assert code == 0 and text.startswith("made differently:\n  platform: Linux-1 | Linux-"), text
    assert f"\n  processor: Abacus | {run_record.processor()}\n{SAME}" in text


def test_a_data_set_is_found_from_another_directory(run, small_faces, capsys, monkeypatch):
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(small_faces), small_faces.name))
    change(run, config=sha256_file(run / "config.yaml"))
    monkeypatch.chdir(run)
    assert verify(capsys, run)[0] == 1
    change(run, working_directory=str(small_faces.parent))
    assert verify(capsys, run) == (0, SAME)


def test_files_that_cannot_be_as_recorded_are_not_read(run, capsys):
    grown, more = run / "latest/latest.pdopt", run / "best_model/more"
    before = grown.stat().st_size
    other = run.with_name("other")
    shutil.copytree(run, other)
    more.touch()
    for path in (grown, more):
        os.truncate(path, 2**43)
    code, text = verify(capsys, run)
    assert code == 1 and f" | {2**43} bytes\n" in text and "best_model/more: absent | not recorded\n2 diff" in text
    code, text = verify(capsys, run, other)
    assert code == 1 and f"latest/latest.pdopt: {2**43} bytes | {before} bytes\n" in text
    assert f"best_model/more: {2**43} bytes | absent\n" in text and text.endswith("\n2 differences\n")
    os.truncate(run / "config.yaml", 2**43)
    code, text = verify(capsys, run)
    assert code == 1 and f" | {2**43} bytes\n" in text


NOT_RECORDS = [None, "", "[]", "{}", '{"versions": 3, "dataset": {}}', '{"versions": {}, "dataset": {}}', "\0" * 9]


@pytest.mark.parametrize("content", NOT_RECORDS)
def test_a_folder_that_is_no_runs_is_an_error_in_three_lines(tmp_path, capsys, content):
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    code, text = verify(capsys, tmp_path)
    assert code == 1 and "run.json is missing or damaged" in text and len(text.splitlines()) == 3


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("dataset", {}),  # would leave the data set out
        ("dataset", {"train": {}, "gallery": {}, "query": {}, "../../secret": {}}),
        ("dataset", {"train": 1, "gallery": 2, "query": 3}),
        ("outputs", ["a"]),
        ("outputs", {"a": {"b": {}}}),
        ("versions", {"numpy": {}}),
        ("git", [1]),
        ("device", {}),
        ("sizes", {"a": "b"}),
        ("threads", [2]),
        ("working_directory", 1),
    ],
)
def test_a_record_of_another_form_is_refused(run, capsys, key, value):
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, key: value}))
    code, text = verify(capsys, run)
    assert code == 1 and "run.json is missing or damaged" in text and len(text.splitlines()) == 3


def test_hostile_names_do_not_reach_the_terminal_and_the_output_is_bounded(run, capsys):
    record = json.loads((run / "run.json").read_text())
    record["outputs"]["\x1b[2J\r\nthe same\u202e\ud800"] = record["versions"]["x" * 10**6] = "0"
    (run / "run.json").write_text(json.dumps(record))
    code, text = verify(capsys, run)
    assert code == 1 and "\\x1b[2J\\x0d\\x0athe same\\u202e\\ud800: 0 | absent\n" in text
    assert "(1000023 characters)" in text and text.endswith("\n2 differences\n") and len(text) < 2000
    record["outputs"]["::error title=forged::x"] = "0"
    (run / "run.json").write_text(json.dumps(record))
    assert "\n\\::error title=forged::x: 0 | absent\n" in verify(capsys, run)[1]
    del record["outputs"]["::error title=forged::x"]
    record["outputs"].update((f"{number}" * 100, "0") for number in range(10_000))
    (run / "run.json").write_text(json.dumps(record))
    code, text = verify(capsys, run)
    assert code == 1 and text.endswith("\n… and 9002 more\n10002 differences\n")
    assert len(text.splitlines()) == 1002 and len(text) < 500_000


def test_images_are_compared_by_path_label_and_size_and_verify_says_so(run, small_faces, tmp_path, capsys):
    data = tmp_path / "data"
    shutil.copytree(small_faces, data, symlinks=True)
    (data / "images").unlink()
    shutil.copytree(small_faces / "images", data / "images")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace(str(small_faces), str(data)))
    record = json.loads((run / "run.json").read_text())
    record["config"] = sha256_file(run / "config.yaml")
    (run / "run.json").write_text(json.dumps(record))
    image = data / "images/s01/01.pgm"
    image.write_bytes(bytes(image.stat().st_size))
    assert verify(capsys, run) == (0, SAME)
    image.write_bytes(bytes(image.stat().st_size + 1))
    code, text = verify(capsys, run)
    assert code == 1 and text.startswith("data set, train: ")
    assert "exchanged by another of the same size is not seen" in " ".join(run_here("verify", "-h").stdout.split())


def test_two_runs_are_compared_and_how_they_were_made_is_told(run, run_folder, capsys):
    other = run.with_name("other")
    shutil.copytree(run_folder, other)
    assert verify(capsys, run, other) == (0, SAME)
    text = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(
        text.replace("num_workers: 0", "num_workers: 3").replace("output: ", "output: x")
    )
    code, text = verify(capsys, run, other)
    assert code == 0 and text == f"made differently:\n  Train.num_workers: 0 | 3\n{SAME}"
    change(other, threads="7", processor="Abacus")
    code, text = verify(capsys, run, other)
    threads, processor = (json.loads((run / "run.json").read_text())[key] for key in ("threads", "processor"))
    assert code == 0 and f"  threads: {threads} | 7\n  processor: {processor} | Abacus\n" in text
    (other / "evaluate_result.json").write_text("{}")
    code, text = verify(capsys, run, other)
    assert code == 1 and text.startswith("evaluate_result.json: absent | 2 bytes\n")
    (run / "evaluate_result.json").write_text("[]")
    code, text = verify(capsys, run, other)
    assert code == 1 and text.startswith("evaluate_result.json: 4f53cda18c2b | 44136fa355b3\n")


def test_verify_is_a_command_that_loads_no_paddle(run):
    done = run_main("verify", str(run))
    assert (done.returncode, done.stdout) == (0, SAME), done.stderr
    assert run_main("verify").returncode == 2


def test_a_command_that_is_not_text_and_a_working_directory_that_is_gone(tmp_path, monkeypatch):
    (tmp_path / "config.yaml").touch()
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    command = ["main.py", "-c", "/tmp/w\udcff/c.yaml"]
    for _ in range(2):  # the second time the record is there already
        run_record.write_start(tmp_path, command, "cpu", "native", 1, {})
    record = json.loads((tmp_path / "run.json").read_text())
    assert record["command"] == command and record["working_directory"] is None and record["git"] is None
    assert sorted(p.name for p in tmp_path.glob("run.json*")) == ["run.json"]


def test_training_from_a_removed_directory_says_so(tmp_path, small_faces):
    """Paddle cannot be imported there."""
    settings = ("Global.mode=train", f"Global.dataset_dir={small_faces}", f"Global.output={tmp_path}/out", *QUICK)
    words = [w for s in settings for w in ("-o", s)]
    code = f"import os, sys; sys.path[0] = {str(ROOT)!r}; from paddlex_feat.cli import main; os.rmdir(os.getcwd()); "
    command = [sys.executable, "-c", f"{code}sys.exit(main({['-c', 'PP-ShiTuV2_rec', *words]!r}))"]
    (tmp_path / "gone").mkdir()
    done = subprocess.run(command, cwd=tmp_path / "gone", capture_output=True, text=True)
    assert done.returncode == 1 and "The working directory has been removed" in done.stderr, done.stderr
    assert "Unexpected" not in done.stderr


def git_in(folder: Path, *words: str) -> None:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always")
    subprocess.run(["git", *who, *words], cwd=folder, check=True, capture_output=True)


def test_the_commit_of_the_working_directory_is_recorded(tmp_path):
    def git(*words: str) -> None:
        git_in(tmp_path, *words)

    assert run_record.git_state(tmp_path) is None
    git("init")
    assert run_record.git_state(tmp_path) is None  # no commit yet
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    (tmp_path / "output").mkdir()
    (tmp_path / "output/untracked").touch()
    state = run_record.git_state(tmp_path)
    assert state is not None and len(state["commit"]) == 40 and state["changed"] is False
    (tmp_path / "a").write_text("2")
    assert run_record.git_state(tmp_path) == {**state, "changed": True}


def evil_repository(folder: Path, mark: Path, included: bool = False) -> Path:
    """One whose filter, which the index's times make git ask, leaves a mark."""
    folder.mkdir()
    git_in(folder, "init")
    (folder / "a").write_text("1")
    git_in(folder, "add", "a")
    git_in(folder, "commit", "-m", "a")
    place = folder / "more" if included else folder / ".git/config"
    git_in(folder, "config", "--file", str(place), "filter.evil.clean", f"touch '{mark}'; cat")
    if included:
        git_in(folder, "config", "include.path", str(place))
    (folder / ".git/info/attributes").write_text("* filter=evil\n")
    os.utime(folder / "a", (1, 1))
    return folder


@pytest.mark.parametrize("included", [False, True])
def test_no_command_of_the_repositorys_configuration_runs(tmp_path, included):
    mark = tmp_path / "mark"
    folder = evil_repository(tmp_path / "evil", mark, included)
    state = run_record.git_state(folder)
    assert state is not None and state["changed"] == "unknown" and len(state["commit"]) == 40
    assert not mark.exists()
    git_in(folder, "status")
    assert mark.exists()  # so the trap is one


def test_no_command_of_a_submodules_configuration_runs(tmp_path):
    mark, outer = tmp_path / "mark", tmp_path / "outer"
    evil_repository(tmp_path / "evil", mark)
    mark.unlink(missing_ok=True)
    outer.mkdir()
    git_in(outer, "init")
    git_in(outer, "submodule", "add", str(tmp_path / "evil"), "part")
    git_in(outer, "commit", "-m", "a")
    inner = outer / ".git/modules/part"
    git_in(outer / "part", "config", "filter.evil.clean", f"touch '{mark}'; cat")
    (inner / "info/attributes").write_text("* filter=evil\n")
    os.utime(outer / "part/a", (1, 1))
    state = run_record.git_state(outer)
    assert state is not None and state["changed"] is False and not mark.exists()
    git_in(outer, "status")
    assert mark.exists()


def test_the_users_own_filters_are_used(tmp_path, monkeypatch):
    """git-lfs is one: without it all of its files would look changed."""
    folder = evil_repository(tmp_path / "repository", tmp_path / "mark")
    git_in(folder, "config", "--unset", "filter.evil.clean")
    (tmp_path / "gitconfig").write_text('[filter "evil"]\n\tclean = cat\n')
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    state = run_record.git_state(folder)
    assert state is not None and state["changed"] is False


@pytest.mark.slow
def test_a_run_that_goes_on_has_outputs_of_its_new_end(run, small_faces, capsys):
    for epochs in (4, 4):  # the second time nothing is left to train
        done = train_here(small_faces, run, "Train.resume=auto", f"Train.epochs_iters={epochs}")
        assert done.returncode == 0, done.stderr
        assert verify(capsys, run) == (0, SAME)
    assert "epoch_4/epoch_4.pdparams" in json.loads((run / "run.json").read_text())["outputs"]
    assert sorted(p.name for p in run.glob("run.json*")) == ["run.json", "run.json.bak"]


@pytest.mark.nightly
@pytest.mark.slow
def test_weights_go_out_as_safetensors_and_come_in_everywhere(run_folder, small_faces, tmp_path):
    def run(mode: str, folder: str, *settings: str) -> None:  # a process each: Paddle numbers variables by process
        words = (f"Global.mode={mode}", f"Global.output={tmp_path / folder}", f"Global.dataset_dir={small_faces}")
        done = run_main("-c", "PP-ShiTuV2_rec", *(w for s in (*words, *QUICK, *settings) for w in ("-o", s)))
        assert done.returncode == 0, done.stderr

    best, tensors = run_folder / "best_model/best_model.pdparams", tmp_path / "a/weights.safetensors"
    run("export", "a", f"Export.weight_path={best}", "Export.save_weights=safetensors")
    run("export", "b", f"Export.weight_path={tensors}", "Export.save_weights=pdparams")
    for name in ("inference.json", "inference.pdiparams", "inference.yml"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    run("evaluate", "b", f"Evaluate.weight_path={tensors}")
    found = json.loads((tmp_path / "b/evaluate_result.json").read_text())["metrics"]["recall1"]
    assert found == json.loads((run_folder / "train_result.json").read_text())["models"]["best"]["score"]
    for start in (best, tensors):
        start_from = f"Train.pretrain_weight_path={start}"
        run("train", f"from{start.suffix}", start_from, "Train.epochs_iters=1")
    ends = [tmp_path / f"from{s}/latest/latest.pdparams" for s in (".pdparams", ".safetensors")]
    assert ends[0].read_bytes() == ends[1].read_bytes()
    from paddlex_feat.models import weights

    back, before = weights.read(tmp_path / "b/weights.pdparams"), weights.read(best)
    assert set(back) == set(before) and all((back[n] == before[n]).all() for n in before)


def test_keys_under_former_names_are_no_difference(run, tmp_path, capsys):
    """A run of an earlier version beside one of this version."""
    earlier = tmp_path / "earlier"
    shutil.copytree(run, earlier)
    text = (earlier / "config.yaml").read_text()
    for former, name in aliases.KEYS.items():
        text = re.sub(rf"^( +){name.rpartition('.')[2]}:", rf"\1{former.rpartition('.')[2]}:", text, flags=re.MULTILINE)
    text = text.replace("crop: pad_crop", "crop: padded")
    assert "keep_last: 5" in text and "crop: padded" in text and "exclude_own: false" in text
    (earlier / "config.yaml").write_text(text)
    code, printed = verify(capsys, earlier, run)
    assert (code, printed) == (0, SAME)
    assert lineage._keys_that_differ(earlier / "config.yaml", load(str(run / "config.yaml"), [])[0]) == []
