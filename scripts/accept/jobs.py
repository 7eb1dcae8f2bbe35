"""Items 13 and 14: several devices, and runs that are stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from accept.bench import METRICS, NO_TF32, ROOT, SWAPPED, Bench, Failed, Line, NotRun, last_words, result, run
from paddlex_feat.runtime.paddle_import import prepare_paddle

BEST = "best_model/best_model.pdparams"
PATIENCE = 120  # seconds until the first epoch of a run is saved


def _pair(bench: Bench) -> str:
    """Two devices, in an order that is not the usual one."""
    if bench.gpu:
        bench.require_gpus(2)
        return "gpu:1,0"
    return "cpu:0,1"


def device_lists(bench: Bench) -> Iterator[Line]:
    """One epoch on each kind of list."""
    lists = [_pair(bench), *["gpu:1"] * (bench.gpus > 1), *["gpu:2,3"] * (bench.gpus > 3)]
    for devices in lists:
        output = bench.folder / f"on_{devices.replace(':', '').replace(',', '_')}"
        bench.main("train", output, f"Global.device={devices}", "Train.batch_size=8", "Train.epochs_iters=1")
        yield bench.line(f"train on {devices}", "done", "done")
    if bench.gpus < 4:
        yield bench.not_run("train on gpu:2,3", "needs 4 GPUs")


def one_batch_on_two(bench: Bench) -> Iterator[Line]:
    """Three steps with half of each batch on either device, and with the whole on one; no BatchNorm."""
    _pair(bench)
    weights = {}
    for count in (1, 2):
        output = bench.folder / f"ranks{count}"
        script = [str(ROOT / "scripts/accept/ranks.py"), str(output)]
        launch = ["-m", "paddle.distributed.launch", "--nproc_per_node", str(count), "--log_level", "ERROR"]
        launch = [*launch, "--log_dir", f"{output}_logs"] if count > 1 else []
        search = os.pathsep.join((str(ROOT), str(ROOT / "scripts")))
        env = {**NO_TF32, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"}
        if not bench.gpu:
            env |= {"PADDLE_DISTRI_BACKEND": "gloo", "ACCEPT_ON_CPU": "1", "CUDA_VISIBLE_DEVICES": "0,1"}
        run([sys.executable, *launch, *script], env=env)
        weights[count] = [dict(np.load(f"{output}.{rank}.npz")) for rank in range(count)]
    away = max(float(np.abs(w[n] - v).max()) for w in weights[2] for n, v in weights[1][0].items())
    same = all(np.array_equal(weights[2][0][n], v) for n, v in weights[2][1].items())
    figure, ok = f"{away:.1e}, {'same bits' if same else 'differ'}", away <= 1e-5 and same
    yield bench.line("two devices: to one with the whole batch, to each other", figure, "<= 1e-5, same bits", ok)


def variants(bench: Bench) -> Iterator[Line]:
    """Without cross-entropy, and with the negatives of all devices."""
    devices = _pair(bench)
    output, settings = bench.folder / "variants", ("Train.batch_size=8", "Train.epochs_iters=1")
    losses = ("Train.loss.ce_weight=0", "Train.cross_device_negatives=True")
    bench.main("train", output, f"Global.device={devices}", *settings, *losses)
    yield bench.line(f"train on {devices}: {' '.join(losses)}", "done", "done")


def evaluated_together(bench: Bench) -> Iterator[Line]:
    """Mode evaluate on two devices and on one, by the same batches.

    The figures are the same if the devices are: another card has kernels of its own, which round otherwise.
    """
    found, same = [], not bench.gpu or _same_cards()
    weights = f"Evaluate.weight_path={bench.run_folder() / BEST}"
    for number, devices in enumerate((bench.device, _pair(bench))):
        output = bench.folder / f"together{number}"
        bench.main("evaluate", output, weights, f"Global.device={devices}", "Global.threads=1", env=NO_TF32)
        found.append(result(output, "evaluate")["metrics"])
    one, two = (", ".join(f"{m[name]:.5f}" for name in METRICS) for m in found)
    bound, ok = (one, one == two) if same else (f"{one}, to {SWAPPED} queries", bench.metrics_agree(*found))
    yield bench.line("evaluate on two devices: recall1, recall5, mAP", two, bound, ok)


def _same_cards() -> bool:
    """Whether the first two GPUs are of one kind."""
    prepare_paddle()
    import paddle

    return bool(paddle.device.cuda.get_device_name(0) == paddle.device.cuda.get_device_name(1))


def _start(bench: Bench, output: Path, *settings: str) -> subprocess.Popen[str]:
    """A long training whose first epoch is saved already."""
    command = bench.command("train", output, *settings, "Train.epochs_iters=2000", "Train.save_interval=1")
    with (bench.folder / f"{output.name}.stderr").open("w") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors, text=True, start_new_session=True
        )
    until = time.monotonic() + PATIENCE
    while not (output / "latest").exists():
        if process.poll() is not None or time.monotonic() > until:
            _stop(process)
            raise Failed(f"no epoch was trained: {_said(bench, output)}")
        time.sleep(0.2)
    return process


def _said(bench: Bench, output: Path) -> str:
    return last_words((bench.folder / f"{output.name}.stderr").read_text(errors="replace"))


def _seconds(process: subprocess.Popen[str], most: float) -> float:
    """How long the process takes to end; it is killed after `most`."""
    started = time.monotonic()
    try:
        process.wait(most)
    except subprocess.TimeoutExpired:
        _stop(process)
    return time.monotonic() - started


def _stop(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # a session of its own; its workers end with it
        process.wait()


def terminated(bench: Bench) -> Iterator[Line]:
    """SIGTERM, then the command that goes on."""
    output = bench.folder / "terminated"
    process = _start(bench, output)
    process.send_signal(signal.SIGTERM)
    seconds, said = _seconds(process, 60), _said(bench, output)
    ok = seconds <= 30 and process.returncode == 1 and "Train.resume=auto" in said
    yield bench.line("SIGTERM: saved and ended", f"{seconds:.1f} s, exit code {process.returncode}", "<= 30 s, 1", ok)
    epoch = json.loads((output / "latest/latest.info.json").read_text())["epoch"]
    bench.main("train", output, "Train.resume=auto", f"Train.epochs_iters={epoch + 2}")
    done = result(output, "train").get("done_flag")
    yield bench.line("and resumed", f"done_flag {done}", "True", done is True)


def killed(bench: Bench) -> Iterator[Line]:
    """SIGKILL to one of two workers, after a look at the contexts on the GPUs."""
    devices, output = _pair(bench), bench.folder / "killed"
    before = _contexts() if bench.gpu else 0
    process = _start(bench, output, f"Global.device={devices}", "Train.batch_size=8")
    try:
        if bench.gpu:
            own = _contexts() - before
            name = "contexts on the GPUs by two workers"
            hidden = bench.not_run(name, "nvidia-smi shows no processes here, as in most containers")
            yield bench.line(name, own, "2", own == 2) if own else hidden
        else:
            yield bench.not_run("contexts on the GPUs by two workers", "needs GPUs")
        os.kill(_worker(output, 1), signal.SIGKILL)
        seconds = _seconds(process, 90)
    finally:
        _stop(process)
    figure, ok = f"{seconds:.1f} s, exit code {process.returncode}", seconds <= 60 and process.returncode == 1
    yield bench.line("kill -9 of a worker: the job ends", figure, "<= 60 s, 1", ok)


def _contexts() -> int:
    """Processes that nvidia-smi sees computing, once for each GPU that they are on."""
    query = ["nvidia-smi", "--query-compute-apps=gpu_uuid,pid", "--format=csv,noheader"]
    try:
        return len(subprocess.run(query, capture_output=True, text=True, check=True).stdout.split("\n")) - 1
    except (OSError, subprocess.CalledProcessError) as error:
        raise NotRun(f"nvidia-smi: {error}") from None


def _worker(output: Path, rank: int) -> int:
    """The worker of that rank, of the run that writes into `output`."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words, environment = (entry / "cmdline").read_bytes(), (entry / "environ").read_bytes()
            except OSError:
                continue
            ours = b"paddlex_feat.cli" in words and str(output).encode() in environment
            if ours and f"PADDLE_TRAINER_ID={rank}\0".encode() in environment:
                return int(entry.name)
    raise Failed(f"worker {rank} was not found")
