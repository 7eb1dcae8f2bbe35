"""Where a process of a mode computes, and how several are started."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from paddlex_feat.config.load import dump
from paddlex_feat.config.schema import Config
from paddlex_feat.fileio.atomic import read_result
from paddlex_feat.modes import MODES
from paddlex_feat.runtime import heartbeat, launch
from paddlex_feat.runtime.cpu import cpu_count
from paddlex_feat.runtime.device import own_device, resolve_device, select_device
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle

MAX_DECODING_THREADS = 8  # that decode: more of them decode hardly more, and hold up the thread that launches kernels


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
        """Share of this process in the machine's processors."""
        return _share(self.group)


def threads_of(config: Config, group: ProcessGroup) -> int:
    """Paddle's CPU threads in this process: one of several on a machine takes its share."""
    return config.Global.threads or (_share(group) if group.size > 1 else 0)


def _share(group: ProcessGroup) -> int:
    return max(1, cpu_count() // group.local_size)


def init_worker(config: Config, group: ProcessGroup, workers: int = 0) -> Worker:
    """Choose this process's device and connect to the others; Paddle is imported already.

    workers: decoding threads; 0 takes a process's share of the processors, at most MAX_DECODING_THREADS.
    """
    device = own_device(config.Global.device, group.size, group.local_rank)
    place = Worker(
        select_device(device), threads_of(config, group), workers or min(_share(group), MAX_DECODING_THREADS), group
    )
    group.init()
    if group.size > group.local_size:  # on one machine the launcher watches all of them
        report = partial(launch.report_loss, config.Global.mode, Path(config.Global.output), group.rank)
        heartbeat.start(group, 60 * config.Train.dist_timeout, report)
    return place


def launch_processes(config: Config, output: Path, machines: str | None = None) -> dict[str, Any]:
    """Run the configured mode with one process a device; the result is what rank 0 wrote."""
    mode, device = config.Global.mode, config.Global.device
    if not device.startswith("cpu"):
        prepare_paddle()
        device = resolve_device(device)  # the same for all processes; says which ids are not there
    whole = config.model_copy(update={"Global": config.Global.model_copy(update={"device": device})})
    spec = MODES.get(mode)
    killed = spec.error_type("A worker was killed.", fix=spec.memory_fix)
    launch.run(mode, dump(whole), output, device, machines, config.Train.dist_port, killed)
    result = read_result(output / f"{mode}_result.json")
    return {k: v for k, v in result.items() if k not in ("done_flag", "err_type", "err_code", "err_msg")}
