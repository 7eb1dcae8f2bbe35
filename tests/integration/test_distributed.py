"""Several processes on this machine, and two machines that are network namespaces, against one process."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.ranks import run_ranks
from support.runs import QUICK, ROOT, train

pytest.importorskip("paddle")

from paddlex_feat.data import samplers
from paddlex_feat.errors import (
    ConfigError,
    ConnectionLostError,
    ImageError,
    Interrupted,
    TrainingError,
)
from paddlex_feat.runtime import launch
from paddlex_feat.runtime.distributed import ProcessGroup

TWO = ("Global.device=cpu:0,1", "Train.batch_size=8")


def ours(output: Path) -> list[int]:
    """Worker processes of the job that writes into `output`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                worker = b"paddlex_feat.cli" in (entry / "cmdline").read_bytes()
                if worker and str(output).encode() in (entry / "environ").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, pytest.param(64, marks=pytest.mark.nightly)])
def test_evaluation_is_identical_for_1_2_and_3_processes(run_folder, small_faces, tmp_path, batch_size):
    results = []
    for processes in (1, 2, 3):
        result = tmp_path / str(processes)
        words = (run_folder / "best_model/inference", small_faces, result, str(batch_size))
        run_ranks(processes, "evaluation.py", *words, logs=tmp_path / f"logs{processes}")
        results.append(dict(np.load(f"{result}.npz")))
    for other in results[1:]:
        for name, value in results[0].items():
            assert np.array_equal(value, other[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [pytest.param(1, marks=pytest.mark.nightly), 2])
def test_processes_with_a_share_of_the_batch_make_the_steps_of_one_with_the_whole(tmp_path, accumulate):
    """Cross-entropy, triplet loss across devices, momentum, decay, accumulation; the network has no BatchNorm."""
    require_the_steps_of_one((1, 2, 3), tmp_path, accumulate, 1.0)


@pytest.mark.slow
def test_two_processes_without_a_classification_loss_make_the_steps_of_one(tmp_path):
    """Three steps; the head, which has no gradient then, stays the same on both."""
    require_the_steps_of_one((1, 2), tmp_path, 1, 0.0)


@pytest.mark.slow
def test_two_processes_train_a_losss_own_parameters_as_one_does(tmp_path):
    """Features of both devices, accumulation, another learning rate for the proxies."""
    require_the_steps_of_one((1, 2), tmp_path, 2, 1.0, proxies=True)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_every_loss_and_head(tmp_path):
    """Losses on pairs see the images of both; ranks have other numbers of images of each class."""
    require_the_same_weights((1, 2), tmp_path, "losses.py")


def require_the_steps_of_one(
    jobs: tuple[int, ...], tmp_path: Path, accumulate: int, ce_weight: float, proxies: bool = False
) -> None:
    require_the_same_weights(jobs, tmp_path, "steps.py", str(accumulate), str(ce_weight), str(int(proxies)))


def require_the_same_weights(jobs: tuple[int, ...], tmp_path: Path, script: str, *words: str) -> None:
    weights = {}
    for processes in jobs:
        result = tmp_path / str(processes)
        run_ranks(processes, script, result, *words, logs=tmp_path / f"logs{processes}")
        weights[processes] = [dict(np.load(f"{result}.{rank}.npz")) for rank in range(processes)]
    for processes in jobs[1:]:
        for own in weights[processes]:
            for name, value in weights[1][0].items():
                assert np.abs(own[name] - value).max() <= 1e-5, (processes, name)
                assert np.array_equal(own[name], weights[processes][0][name])  # the ranks agree to the bit


@pytest.mark.slow
def test_two_processes_train_one_network(small_faces, tmp_path):
    done = train(small_faces, tmp_path, *TWO)
    assert done.returncode == 0, done.stderr
    assert "2 processes" in done.stderr and done.stderr.count("epoch 3/3") == 1  # one console
    result = json.loads((tmp_path / "train_result.json").read_text())
    best = result["models"]["best"]
    assert result["done_flag"] is True and (tmp_path / best["pdparams"]).is_file()
    assert "epoch 3/3" in (tmp_path / "distributed_train_logs/rank_1.log").read_text()
    assert not list(tmp_path.glob("distributed_train_logs/envlog*"))  # launch writes the environment there
    assert json.loads((tmp_path / "run.json").read_text())["processes"] == 2
    # Evaluated by one process, the best weights have the score that two gave them.
    settings = ("Global.mode=evaluate", f"Global.dataset_dir={small_faces}", f"Global.output={tmp_path}/e")
    weight = f"Evaluate.weight_path={tmp_path}/best_model/best_model.pdparams"
    words = [w for s in (*settings, weight) for w in ("-o", s)]
    subprocess.run([sys.executable, "main.py", "-c", "PP-ShiTuV2_rec", *words], cwd=ROOT, check=True)
    assert json.loads((tmp_path / "e/evaluate_result.json").read_text())["metrics"]["recall1"] == best["score"]


def test_a_link_among_the_logs_of_workers_is_not_followed(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "workerlog.0").write_text("of the worker")
    (tmp_path / "victim").write_text("the user's")
    (tmp_path / "logs" / "workerlog.0").symlink_to("../victim")
    launch._keep([tmp_path / "workerlog.0"], tmp_path / "logs")
    assert (tmp_path / "victim").read_text() == "the user's"
    assert (tmp_path / "logs" / "workerlog.0").read_text() == "of the worker"


def test_modules_of_the_working_directory_are_not_imported(tmp_path):
    for name in ("json", "numpy", "runpy", "site"):
        (tmp_path / f"{name}.py").write_text("open('imported', 'w'); raise SystemExit('a module of strangers')")
    words = [*launch._START, "paddlex_feat.cli", "--version"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout and not (tmp_path / "imported").exists(), done.stderr


@pytest.mark.slow
def test_a_workers_error_is_the_jobs_error(small_faces, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(small_faces, data, symlinks=True)
    (data / "bad.jpg").write_bytes(b"no image")
    lines = (data / "train.txt").read_text().splitlines()
    (data / "train.txt").write_text("\n".join(f"bad.jpg {line.split()[1]}" for line in lines) + "\n")
    done = train(data, tmp_path / "out", *TWO)
    assert done.returncode == 1 and "bad.jpg" in done.stderr and "worker" in done.stderr
    result = json.loads((tmp_path / "out/train_result.json").read_text())
    assert result["done_flag"] is False and "bad.jpg" in result["err_msg"] and not ours(tmp_path)


def start(data: Path, output: Path, *overrides: str) -> subprocess.Popen[str]:
    """A training of 200 epochs, which somebody will have to end."""
    settings = ("Global.mode=train", f"Global.dataset_dir={data}", f"Global.output={output}", *QUICK, *overrides)
    words = [w for s in (*settings, "Train.epochs_iters=200") for w in ("-o", s)]
    command = [sys.executable, "main.py", "-c", "PP-ShiTuV2_rec", *words]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < until, process.communicate()[1]
        time.sleep(0.2)


@pytest.mark.slow
def test_a_signal_saves_and_names_the_command_that_goes_on(small_faces, tmp_path):
    process = start(small_faces, tmp_path, *TWO)
    wait_for(tmp_path / "epoch_2", process)
    process.send_signal(signal.SIGTERM)
    message = process.communicate(timeout=60)[1]
    assert process.returncode == 1 and "Train.resume=auto" in message and not ours(tmp_path)
    done = train(small_faces, tmp_path, *TWO, "Train.resume=auto", "Train.epochs_iters=3")
    assert done.returncode == 0, done.stderr
    assert "Resuming after epoch" in done.stderr


@pytest.mark.slow
def test_a_killed_worker_ends_the_job_with_a_word(small_faces, tmp_path):
    process = start(small_faces, tmp_path, *TWO)
    wait_for(tmp_path / "epoch_1", process)
    victim = next(p for p in ours(tmp_path) if b"PADDLE_TRAINER_ID=1\0" in Path(f"/proc/{p}/environ").read_bytes())
    os.kill(victim, signal.SIGKILL)
    message = process.communicate(timeout=120)[1]
    assert process.returncode == 1 and "exited without an error message" in message and not ours(tmp_path)
    assert (tmp_path / "latest/latest.pdparams").is_file()


@pytest.mark.slow
def test_a_killed_launcher_leaves_no_process_behind(small_faces, tmp_path):
    process = start(small_faces, tmp_path, *TWO)
    wait_for(tmp_path / "epoch_1", process)
    process.kill()
    process.communicate()
    until = time.monotonic() + 60
    while ours(tmp_path) and time.monotonic() < until:
        time.sleep(0.5)
    assert not ours(tmp_path)


@pytest.fixture
def two_machines():
    """Two network namespaces with addresses of their own, joined by a virtual cable."""
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and the command ip")
    names = [f"feat{os.getpid()}{side}" for side in "ab"]
    steps = [["ip", "netns", "add", name] for name in names]
    steps.append(["ip", "link", "add", "feata", "netns", names[0], "type", "veth", "peer", "featb", "netns", names[1]])
    for number, (name, end) in enumerate(zip(names, ("feata", "featb"), strict=True), 1):
        steps.append(["ip", "-n", name, "addr", "add", f"10.77.0.{number}/24", "dev", end])
        steps += [["ip", "-n", name, "link", "set", device, "up"] for device in ("lo", end)]
    try:
        for step in steps:
            done = subprocess.run(step, capture_output=True, text=True)
            if done.returncode:
                pytest.skip(f"no network namespaces here: {done.stderr}")
        yield names
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)


@pytest.mark.nightly
def test_two_machines_train_one_network(two_machines, small_faces, tmp_path):
    """Each with two processes and a folder of its own; the weights are those of four processes on one machine."""
    machines = ("Global.device=cpu:0,1", "Train.dist_ips=10.77.0.1,10.77.0.2", "Train.batch_size=8")
    processes = []
    for number, name in enumerate(two_machines):
        output = tmp_path / str(number)
        settings = ("Global.mode=train", f"Global.dataset_dir={small_faces}", f"Global.output={output}")
        words = [w for s in (*settings, *QUICK, *machines, "Train.epochs_iters=2") for w in ("-o", s)]
        command = ["ip", "netns", "exec", name, sys.executable, "main.py", "-c", "PP-ShiTuV2_rec", *words]
        processes.append(subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True))
    for process in processes:
        message = process.communicate(timeout=240)[1]
        assert process.returncode == 0, message
    done = train(
        small_faces, tmp_path / "one", "Global.device=cpu:0,1,2,3", "Train.batch_size=8", "Train.epochs_iters=2"
    )
    assert done.returncode == 0, done.stderr
    weights = [(tmp_path / n / "latest/latest.pdparams").read_bytes() for n in ("0", "one")]
    assert weights[0] == weights[1]
    assert not (tmp_path / "1/latest").exists()  # rank 0's machine keeps the files


def test_addresses_that_are_not_ours_are_said():
    with pytest.raises(ConfigError, match=r"10\.9\.9\.9"):
        launch.own_address("10.9.9.9,10.9.9.8")
    assert launch.own_address("10.9.9.9,127.0.0.1") == "127.0.0.1"


def test_one_process_starts_others_only_if_it_is_not_one_itself(monkeypatch):
    one, second = ProcessGroup(), ProcessGroup(1, 2, 1, 2)
    assert launch.needs_workers("gpu:0,1", None, one) and launch.needs_workers("cpu", "10.0.0.1,10.0.0.2", one)
    assert not launch.needs_workers("gpu:0", None, one) and not launch.needs_workers("auto", None, one)
    monkeypatch.setenv("PADDLE_TRAINERS_NUM", "2")
    monkeypatch.setenv("PADDLE_TRAINER_ID", "1")
    assert not launch.needs_workers("gpu:0,1", None, second) and ProcessGroup.from_environment().rank == 1


KILLED = TrainingError("Killed.", fix="Lower this.")


def test_the_first_worker_that_failed_gives_the_reason(tmp_path):
    cut = {"type": "FeatError", "what": "Connection lost.", "where": None, "fix": None}
    first = {"type": "ImageError", "what": "No image.", "where": "a.jpg", "fix": "Mend it."}
    error = launch._reason([(1, first), (0, cut)], tmp_path, 1, KILLED, 2)
    assert isinstance(error, ImageError) and "No image." in str(error) and "worker 1, a.jpg" in str(error)
    saved = {"type": "Interrupted", "what": "Saved.", "where": "train", "fix": "Go on."}
    assert isinstance(launch._reason([(1, saved), (0, saved)], tmp_path, 15, KILLED, 2), Interrupted)
    (tmp_path / "workerlog.0").write_text("Killed")
    (tmp_path / "workerlog.1").write_text("Killed")
    killed = launch._reason([(0, saved)], tmp_path, 9, KILLED, 2)
    assert isinstance(killed, TrainingError) and killed.code == "worker-killed" and "Lower this" in killed.fix


def test_a_connection_lost_to_another_machine_is_not_a_killed_worker(tmp_path):
    """The second of two machines, whose ranks 2 and 3 log to files 0 and 1; gloo ends rank 3 without an exception."""
    lost = {"type": "ConnectionLostError", "what": "Lost.", "where": None, "fix": None}
    (tmp_path / "workerlog.0").write_text("fine until then")
    (tmp_path / "workerlog.1").write_text("gloo::IoException\n  what(): Connection reset by peer")
    for failures in ([(2, lost), (3, lost)], [(2, lost)]):
        error = launch._reason(failures, tmp_path, 250, KILLED, 2, several_machines=True)
        assert isinstance(error, ConnectionLostError) and "reset by peer" in error.what
        assert isinstance(launch._reason(failures, tmp_path, 250, KILLED, 2), TrainingError)
    (tmp_path / "workerlog.1").write_text("Killed")
    error = launch._reason([(2, lost)], tmp_path, 9, KILLED, 2, several_machines=True)
    assert isinstance(error, TrainingError) and "workerlog.1: Killed" in error.what
    silent = {**lost, "type": "PeerLostError", "what": "Rank 0 is silent."}
    assert "Rank 0" in launch._reason([(2, lost), (3, silent)], tmp_path, 1, KILLED, 2, True).what


@pytest.mark.parametrize("size", [1, 2, 3])
def test_ranks_share_an_epoch(size):
    labels = np.repeat(np.arange(6), [3, 9, 4, 4, 7, 5])
    shuffled = [samplers.build(labels, 4, None, 0, rank, size) for rank in range(size)]
    seen = np.concatenate([i for s in shuffled for i in s.epoch(2)])
    assert set(seen) == set(range(32)) and len(seen) - 32 < size
    drawn = [samplers.build(labels, 8, 4, 0, rank, size) for rank in range(size)]
    assert {s.batches_per_epoch for s in drawn} == {math.ceil(math.ceil(32 / size) / 8)}
    firsts = [tuple(next(s.epoch(2))) for s in drawn]
    assert len(set(firsts)) == size


def test_uniform_classes_are_drawn_alike():
    labels = np.repeat(np.arange(4), [90, 4, 4, 4])
    counts = {}
    for uniform in (False, True):
        sampler = samplers.build(labels, 8, 4, 0, uniform=uniform)
        drawn = np.concatenate([b for e in range(40) for b in sampler.epoch(e)])
        counts[uniform] = np.bincount(labels[drawn], minlength=4) / len(drawn)
    assert counts[False][0] > 0.45 and np.ptp(counts[True]) < 0.08


@pytest.mark.slow
@pytest.mark.parametrize("head", ["arc_margin", pytest.param("subcenter_arcface", marks=pytest.mark.nightly)])
def test_class_vectors_in_parts_take_the_steps_of_one_process(head, tmp_path):
    """200 steps of two accumulated batches over 701 classes, which 2 and 3 processes share unevenly."""
    results = []
    for processes in (1, 2, 3):
        run_ranks(processes, "classifier.py", head, tmp_path / str(processes), logs=tmp_path / f"logs{processes}")
        arrays = dict(np.load(tmp_path / f"{processes}.npz"))
        results.append({**arrays, **load_file(tmp_path / f"{processes}.head.safetensors")})
    for other in results[1:]:
        for name, value in results[0].items():
            np.testing.assert_allclose(other[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
