"""The process of a run: its device and threads, and how several processes are started."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paddlex_feat.config.load import dump
from paddlex_feat.config.schema import Config
from paddlex_feat.errors import FeatError
from paddlex_feat.modes import MODES
from paddlex_feat.runtime import heartbeat, launch
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.runtime.device import own_device, resolve_device, select_device
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle

MAX_DECODING_THREADS = 8  # more are hardly faster, and delay the thread that launches kernels


@dataclass(frozen=True)
class Worker:
    """Where this process computes: its device, its CPU threads, its rank among the processes of the run.

    Attributes:
        device: "cpu" or "gpu:N".
        threads: CPU threads of Paddle; 0: one per processor.
        decoding_threads: threads that decode images.
        group: the processes of the run.
    """

    device: str
    threads: int
    decoding_threads: int
    group: ProcessGroup

    @property
    def processors(self) -> int:
        """Number of the machine's processors that this process may use."""
        return _share(self.group)


def threads_of(config: Config, group: ProcessGroup) -> int:
    """Number of Paddle's CPU threads in this process; processes on one machine share the processors."""
    return config.Global.threads or (_share(group) if group.size > 1 else 0)


def _share(group: ProcessGroup) -> int:
    return max(1, cpu_count() // group.local_size)


def init_worker(config: Config, group: ProcessGroup, workers: int = 0) -> Worker:
    """Choose this process's device and connect to the others. Paddle must have been imported.

    Args:
        config: Global.device names the devices of all processes.
        group: the processes of the run.
        workers: decoding threads; 0: this process's share of the processors, at most MAX_DECODING_THREADS.

    Raises:
        DeviceError: the device does not exist.
    """
    device = own_device(config.Global.device, group.size, group.local_rank)
    worker = Worker(
        select_device(device), threads_of(config, group), workers or min(_share(group), MAX_DECODING_THREADS), group
    )
    group.init()
    if group.size > group.local_size:  # on one machine the launcher watches all of them
        report = partial(
            launch.report_loss, MODES.get(config.Global.mode).run_name(config), Path(config.Global.output), group.rank
        )
        heartbeat.start(group, 60 * config.Train.dist_timeout, report)
    return worker


def launch_processes(config: Config, output: Path, machines: str | None = None) -> dict[str, Any]:
    """Run the configured mode with one process per device; return the result that rank 0 wrote.

    Raises the error of the job, with the result as far as it was written.
    """
    spec, device = MODES.get(config.Global.mode), config.Global.device
    if not device.startswith("cpu"):
        prepare_paddle()
        device = resolve_device(device)  # once for all processes; its error names the missing ids
    whole = config.model_copy(update={"Global": config.Global.model_copy(update={"device": device})})
    name = spec.run_name(config)
    killed = spec.error_type("A worker was killed.", fix=spec.memory_fix)
    try:
        launch.run(name, dump(whole), output, device, machines, config.Train.dist_port, killed)
    except FeatError as error:
        raise error.with_result(_result(name, output)) from error.__cause__
    return _result(name, output)


def _result(name: str, output: Path) -> dict[str, Any]:
    """What rank 0 has written, of any length; nothing if it could not."""
    try:
        result = json.loads((output / f"{name}_result.json").read_bytes())
    except (OSError, ValueError):
        result = {}
    return {k: v for k, v in result.items() if k not in ("done_flag", "err_type", "err_code", "err_msg")}
