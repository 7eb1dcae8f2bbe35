"""Two machines, played by two launchers with addresses of their own on this one: one of them dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.runs import QUICK, ROOT

pytest.importorskip("paddle")

SMALLEST = ("Model.depth=1", "Model.width=32", "Model.heads=2", "Model.patch_size=16")
MACHINES = ("127.0.0.2", "127.0.0.3")
# Both addresses are this machine's, so the launcher is told which one it plays.
LAUNCHER = """
import sys
from paddlex_feat.runtime import launch
address = sys.argv.pop(1)
launch.own_address = lambda machines: address
from paddlex_feat.cli import main
sys.exit(main())
"""


# The heartbeat alone, with what it reports on standard output; the file stands for Paddle's exchange.
RANK = """
import ctypes, json, numpy, sys, time
from pathlib import Path
from paddlex_feat.runtime import heartbeat
from paddlex_feat.runtime.distributed import ProcessGroup

class FileGroup(ProcessGroup):
    def broadcast(self, array):
        if self.rank == 0:
            Path(sys.argv[2]).with_suffix(".new").write_text(json.dumps(array.tolist()))
            Path(sys.argv[2]).with_suffix(".new").rename(sys.argv[2])
        while not Path(sys.argv[2]).is_file():
            time.sleep(0.01)
        return numpy.array(json.loads(Path(sys.argv[2]).read_text()), array.dtype)

heartbeat.BEAT = 0.1
heartbeat.start(FileGroup(int(sys.argv[1]), 3), 1.0, lambda error: print(error, flush=True))
print("watching", flush=True)
if sys.stdin.readline() == "hang\\n":
    ctypes.PyDLL(None).sleep(60)  # in C, with the interpreter's lock
heartbeat.stop()
time.sleep(3)  # longer than the others wait for a lost one
"""


def start(data: Path, output: Path, address: str, port: int, *settings: str) -> subprocess.Popen[str]:
    """One machine's launcher, with one process, training for longer than the test takes."""
    words = ("Global.mode=train", f"Global.dataset_dir={data}", f"Global.output={output}", *QUICK)
    words += ("Train.batch_size=8", "Train.epochs_iters=5000", f"Train.dist_ips={','.join(MACHINES)}")
    words += (f"Train.dist_port={port}", "Train.eval_interval=5000", "Train.save_interval=9", *SMALLEST, *settings)
    command = [
        sys.executable,
        "-c",
        LAUNCHER,
        address,
        "-c",
        "PP-ShiTuV2_rec_CLIP_vit_base",
        *(w for s in words for w in ("-o", s)),
    ]
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            children.setdefault(parent, []).append(int(entry.name))
    found = [pid]
    for known in found:
        found += children.get(known, [])
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "dead", "message"),
    [(signal.SIGSTOP, 1, "Rank 1 has not been heard"), (signal.SIGKILL, 0, "another machine")],
)
def test_a_machine_that_dies_ends_the_other(small_faces, tmp_path, sent, dead, message):
    """Stopped processes close no connection, like a machine without power; killed ones close all of them."""
    port = 20000 + os.getpid() % 20000
    jobs = [start(small_faces, tmp_path / a, a, port, "Train.dist_timeout=0.3") for a in MACHINES]
    try:
        until = time.monotonic() + 300
        while not (tmp_path / MACHINES[0] / "epoch_9").exists():
            assert jobs[0].poll() is None and time.monotonic() < until, jobs[0].communicate()[1]
            time.sleep(0.1)
        for pid in family(jobs[dead].pid):
            os.kill(pid, sent)
        began = time.monotonic()
        shown = jobs[1 - dead].communicate(timeout=90)[1]
        assert time.monotonic() - began < 45, shown
        assert jobs[1 - dead].returncode == 1 and message in shown and "Train.resume=auto" in shown, shown
        result = json.loads((tmp_path / MACHINES[1 - dead] / "train_result.json").read_text())
        assert result["done_flag"] is False and message in result["err_msg"]
    finally:
        for job in jobs:
            for pid in family(job.pid) if job.poll() is None else []:
                os.kill(pid, signal.SIGKILL)
            job.wait()


@pytest.fixture
def ranks(tmp_path):
    """Three processes that watch each other, and end after a second of silence."""
    environment = {**os.environ, "PADDLE_MASTER": "127.0.0.1:1", "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    commands = [[sys.executable, "-c", RANK, str(rank), str(tmp_path / "port")] for rank in range(3)]
    processes = [subprocess.Popen(command, env=environment, **pipes) for command in commands]
    assert all(process.stdout.readline() == "watching\n" for process in processes)
    time.sleep(0.5)
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("dead", [0, 2])
def test_ranks_end_when_one_falls_silent(ranks, dead):
    ranks[dead].kill()
    for rank in {0, 1, 2} - {dead}:
        assert ranks[rank].wait(15) == 1
        assert f"Rank {dead} has not been heard" in ranks[rank].stdout.read()


def test_a_process_that_hangs_with_the_interpreters_lock_is_ended_too(ranks):
    ranks[1].stdin.write("hang\n")
    ranks[1].stdin.flush()
    assert ranks[1].wait(15) == 1 and "Timeout" in ranks[1].stderr.read()
    assert ranks[0].wait(15) == 1 and "Rank 1 has not been heard" in ranks[0].stdout.read()


def test_a_pause_of_all_and_an_orderly_end_are_no_loss(ranks):
    for sent in (signal.SIGSTOP, signal.SIGCONT):
        for process in ranks:
            process.send_signal(sent)
        time.sleep(1.5)
    for process in ranks:
        assert process.poll() is None
        process.stdin.write("end\n")
        process.stdin.flush()
    assert all((process.wait(15), process.stdout.read()) == (0, "") for process in ranks)
