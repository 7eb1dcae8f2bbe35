"""One training or evaluation on several devices or machines: start the processes, watch them, report a failure.

paddle.distributed.launch starts and ends the processes. This module gives it the command,
passes signals on, shows rank 0's console, and turns a worker's failure into the job's error.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import logging
import os
import re
import runpy
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from paddlex_feat import errors
from paddlex_feat.errors import (
    ConfigError,
    ConnectionLostError,
    FeatError,
    Interrupted,
    as_output_error,
)
from paddlex_feat.fileio.atomic import atomic_path, write_json
from paddlex_feat.fileio.temporary import TemporaryFolder
from paddlex_feat.fileio.user_folders import home_for_paddle
from paddlex_feat.runtime.distributed import ENV_COMMAND, ProcessGroup, logs_folder
from paddlex_feat.runtime.signals import INSISTING, handled, ignore_others, is_news

log = logging.getLogger(__name__)
_POLL_SECONDS = 0.2
_OF_THE_CONNECTION = re.compile(r"gloo|nccl|connection", re.IGNORECASE)  # the last line of a process that lost its peer
# As `-m` does, but not from modules of the working directory, which may be a data set of strangers.
_RUN_MODULE = (
    "import sys; sys.path[:] = filter(None, sys.path); "
    "import runpy; runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)
_START = [sys.executable, "-c", _RUN_MODULE]


def device_ids(device: str) -> list[int]:
    """The ids in "gpu:0,1"; an empty list for "auto", "cpu" and "gpu"."""
    return [int(i) for i in device.partition(":")[2].split(",") if i]


def needs_workers(device: str, machines: str | None, group: ProcessGroup) -> bool:
    """Whether this process has to start others; not if it is one of several itself."""
    return (len(device_ids(device)) > 1 or bool(machines)) and group.size == 1


def report_failure(logs: Path, error: FeatError, rank: int) -> None:
    """Write a worker's error to where the process that started it looks."""
    earlier = len(list(logs.glob("error_*.json")))  # the order of the errors; clocks may jump
    names = ("what", "where", "fix", "code")
    content = {"type": type(error).__name__, **{name: getattr(error, name) for name in names}}
    write_json(logs / f"error_{rank}.json", {**content, "earlier": earlier})


def report_loss(mode: str, output: Path, rank: int, error: FeatError) -> None:
    """Write the error of a lost machine to the files of the run; the process ends after that."""
    report_failure(output / logs_folder(mode), error, rank)
    if rank == 0:
        result = {"done_flag": False, "err_type": str(type(error)), "err_code": error.code, "err_msg": str(error)}
        write_json(output / f"{mode}_result.json", result)
    log.log(logging.DEBUG if ENV_COMMAND in os.environ else logging.ERROR, "%s", error)


def run(
    mode: str,
    configuration: str,
    output: Path,
    device: str,
    machines: str | None,
    port: int,
    killed: FeatError,
) -> None:
    """Run one process a device, on this machine and on those of `machines`.

    Args:
        mode: that of the configuration; names the folder of the logs.
        configuration: the whole configuration as YAML; the workers read it from a file.
        output: the run's folder, Global.output; the logs go to a folder in it.
        device: "gpu:0,1", "cpu:0,1", …: one process an id.
        machines: addresses of all machines, separated by commas; each runs this same command.
        port: first port of the job, on each machine.
        killed: what to raise if a worker ends without an error of its own: its type, and its advice.

    Raises the error of the first worker that failed, or Interrupted.
    """
    logs = output / logs_folder(mode)
    with as_output_error(logs):
        logs.mkdir(parents=True, exist_ok=True)
        for error in logs.glob("error_*.json"):  # of an earlier job
            error.unlink()
    # Private, because launch writes the whole environment, passwords included, beside its logs.
    with TemporaryFolder() as folder:
        with as_output_error(folder):
            (folder / "config.yaml").write_text(configuration, encoding="utf-8")
        command = [*_START, "paddlex_feat.runtime.launch", *_options(device, machines, port)]
        command += ["--log_dir", str(folder), "--log_level", "ERROR"]
        command += [*_START, "paddlex_feat.cli", "-c", str(folder / "config.yaml")]
        try:
            code = _watch(command, _environment(device, machines), folder)
        finally:
            _keep([*folder.glob("workerlog.*"), *folder.glob("launch.log")], logs)
    failures = _failures(logs)
    if code or failures:
        raise _reason(failures, logs, code, killed, len(device_ids(device)) or 1, bool(machines))


def _keep(files: list[Path], folder: Path) -> None:
    """Copy files into a folder; where a link of the same name is there, it is replaced and not followed."""
    for file in files:
        with atomic_path(folder / file.name) as temporary:
            shutil.copyfile(file, temporary)


def _options(device: str, machines: str | None, port: int) -> list[str]:
    options = ["--nproc_per_node", str(len(device_ids(device)) or 1)]
    if machines:
        options += ["--ips", machines, "--start_port", str(port), "--host", own_address(machines)]
    return options


def own_address(machines: str) -> str:
    """The address among `machines` that belongs to this machine. Raises ConfigError if there is none."""
    for address in machines.split(","):
        with socket.socket() as probe:
            try:
                probe.bind((address, 0))
                return address
            except OSError:
                continue
    raise ConfigError(
        f"None of the addresses {machines} belongs to this machine.",
        where="Train.dist_ips",
        fix="List the address of every machine of the job, in the same order on each.",
        code="address-unknown",
    )


def _interface(address: str) -> str | None:
    """The network interface that has the address, which gloo wants by name; None where the system does not tell."""
    try:
        import fcntl
    except ImportError:  # Windows
        return None

    get_address = 0x8915  # SIOCGIFADDR
    for _, name in socket.if_nameindex():
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                answer = fcntl.ioctl(probe.fileno(), get_address, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue
            if socket.inet_ntoa(answer[20:24]) == address:
                return name
    return None


def _environment(device: str, machines: str | None) -> dict[str, str]:
    package = Path(__file__).resolve().parent.parent
    environment = {
        **os.environ,
        ENV_COMMAND: json.dumps(sys.argv),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
    }
    # launch gives every process one of the visible devices; it wants as many even where they are not used.
    ids, visible = device_ids(device) or [0], os.environ.get("CUDA_VISIBLE_DEVICES", "")
    labels = visible.split(",") if visible and device.startswith("gpu") else [str(i) for i in range(max(ids) + 1)]
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(labels[i] for i in ids)
    if device.startswith("cpu"):
        environment["PADDLE_DISTRI_BACKEND"] = "gloo"
        environment.pop("OMP_NUM_THREADS", None)  # each worker takes its share of the processors
        name = _interface(own_address(machines)) if machines else None
        if name:
            environment["GLOO_SOCKET_IFNAME"] = name
    return environment


def die_with_parent() -> None:
    """Ask the kernel for a SIGTERM when the parent dies, so that a killed job leaves no process behind."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _watch(command: list[str], environment: dict[str, str], folder: Path) -> int:
    """Run launch to its end, with rank 0's console on ours; its exit code."""
    with (folder / "launch.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and arguments
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches this process alone, which passes it on once
        )
    ended = threading.Event()
    console = threading.Thread(target=_show, args=(folder / "workerlog.0", ended), daemon=True)
    console.start()
    try:
        with _signals_to(process):
            code = process.wait()
    finally:
        if process.poll() is None:
            process.kill()
        ended.set()
        console.join()
    return code


def _show(path: Path, ended: threading.Event) -> None:
    """Copy what is appended to `path` to standard error until `ended`."""
    position, last = 0, False
    while not last:
        last = ended.wait(_POLL_SECONDS)
        if path.is_file():
            with path.open("rb") as stream:
                stream.seek(position)
                data = stream.read()
                position += len(data)
            sys.stderr.write(data.decode("utf-8", "replace"))
            sys.stderr.flush()


@contextmanager
def _signals_to(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Pass signals that end a run on as the SIGTERM at which the workers save and end."""

    def pass_on(signum: int, frame: FrameType | None) -> None:
        if is_news(signum):
            process.send_signal(signal.SIGTERM)

    with handled(pass_on, INSISTING):
        yield


def _failures(logs: Path) -> list[tuple[int, dict[str, Any]]]:
    """(rank, error) of the workers that said why they ended, the first one first."""
    errors_by_rank = [
        (int(f.stem.partition("_")[2]), json.loads(f.read_text(encoding="utf-8"))) for f in logs.glob("error_*.json")
    ]
    return sorted(errors_by_rank, key=lambda entry: (entry[1]["earlier"], entry[0]))


def _reason(
    failures: list[tuple[int, dict[str, Any]]],
    logs: Path,
    code: int,
    killed: FeatError,
    workers: int,
    several_machines: bool = False,
) -> FeatError:
    """Why the job ended: a worker's own error, else a worker without an error message, else a signal to all.

    Args:
        failures: (rank, error) of the workers that wrote one, the first one first.
        logs: folder of the workers' logs.
        code: exit code of Paddle's launcher.
        killed: error of a worker that wrote none; its advice is kept.
        workers: how many this machine has.
        several_machines: whether the job runs on more than this machine.
    """
    consequences = ("Interrupted", "ConnectionLostError")
    own = [(rank, e) for rank, e in failures if e["type"] not in consequences]
    if own:
        rank, error = own[0]
        kind = getattr(errors, error["type"], FeatError)
        where = f"worker {rank}" + (f", {error['where']}" if error["where"] else "")
        return kind(error["what"], where=where, fix=error["fix"], code=error.get("code"))
    interrupted = [(rank, e) for rank, e in failures if e["type"] == "Interrupted"]
    # A killed worker says nothing, and its death interrupts the others: only if all say so, all were told to end.
    if len(interrupted) == workers:
        error = min(interrupted)[1]  # rank 0 knows what was saved
        return Interrupted(error["what"], where=error["where"], fix=error["fix"])
    heard = {str(rank % workers) for rank, _ in failures}  # each machine counts its own logs from 0
    files = sorted(logs.glob("workerlog.*")) or [logs / "launch.log"]
    silent = [f for f in files if f.suffix[1:] not in heard]
    last = "".join(f"\n    {file.name}: {_last_line(file)}" for file in silent or files)
    if several_machines and all(_OF_THE_CONNECTION.search(_last_line(file)) for file in silent):
        return ConnectionLostError(
            f"The connection to another machine of the job was lost.{last}",
            where=str(logs),
            fix="See what the job says on the others, then start it again on all with -o Train.resume=auto.",
            code="connection-lost",
        )
    return type(killed)(
        f"A worker exited without an error message (exit code {code}); it was probably killed.{last}",
        where=str(logs),
        fix=f"See the logs there. If the system ran out of memory: {killed.fix}",
        code="worker-killed",
    )


def _last_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:200] if lines else "(empty)"


def _launcher() -> None:
    """Paddle's launcher, in a process that does not outlive the one that started it."""
    parent, folder = os.getppid(), sys.argv[sys.argv.index("--log_dir") + 1]
    die_with_parent()
    ignore_others()  # the process that started this one passes them on as SIGTERM
    try:
        with home_for_paddle():
            importlib.import_module("paddle")
        runpy.run_module("paddle.distributed.launch", run_name="__main__", alter_sys=True)
    finally:
        if os.getppid() != parent:  # killed: nobody else clears away what launch wrote of the environment
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    _launcher()
