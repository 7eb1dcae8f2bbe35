"""Run one mode: the steps that the command and the Python API share."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConnectionLostError, FeatError, out_of_memory, run_output
from paddlex_feat.fileio.atomic import read_result
from paddlex_feat.fileio.backups import backup
from paddlex_feat.fileio.locks import locked
from paddlex_feat.fileio.temporary import remove_stale, temporary_files_in
from paddlex_feat.fileio.user_folders import matplotlib_folder
from paddlex_feat.modes import MODES, ModeSpec
from paddlex_feat.provenance import run_record
from paddlex_feat.runtime.distributed import ProcessGroup, logs_folder
from paddlex_feat.runtime.opencv import silent_opencv

# How gloo, NCCL and the store report that another process is gone.
_OF_THE_CONNECTION = re.compile(r"gloo|nccl|tcp_store|socket|connection|timeout", re.IGNORECASE)


def log_file(output: Path, name: str, group: ProcessGroup) -> Path:
    """The log of this process, of a run of this name (`ModeSpec.run_name`)."""
    return output / logs_folder(name) / f"rank_{group.rank}.log" if group.rank else output / f"{name}.log"


def result_file(output: Path, name: str) -> Path:
    """The result file of a run."""
    return output / f"{name}_result.json"


def is_done(output: Path, mode: str) -> bool:
    """Whether the folder has the result of a finished run of the mode."""
    return read_result(result_file(output, mode)).get("done_flag") is True


@contextmanager
def hold_output(mode: str, output: Path, shared: bool, patience: float | None = None) -> Iterator[None]:
    """Keep other runs of the mode out of the folder; errors of the block about its files name Global.output.

    Args:
        mode: name of the run, whose lock file is taken.
        output: the folder Global.output.
        shared: the processes of a job hold the folder together, also on several machines, where it may be the same.
        patience: seconds to wait for another run; None: a few.

    Raises:
        OutputError: another run writes to the folder, or it cannot be written.
    """
    with run_output(output), locked(output / f".{mode}.lock", shared, patience):
        yield


@contextmanager
def open_output(config: Config, group: ProcessGroup) -> Iterator[ModeSpec]:
    """Hold Global.output for a run, remove what killed runs left, and provide a place for temporary files.

    Gives the mode. Raises OutputError as `hold_output` does.
    """
    spec, output = MODES.get(config.Global.mode), Path(config.Global.output)
    shared = group.size > 1 or (spec.multi_machine and bool(config.Train.dist_ips))
    with hold_output(spec.run_name(config), output, shared), temporary_files_in(output), matplotlib_folder():
        yield spec


def prepare_output(spec: ModeSpec, output: Path, group: ProcessGroup) -> None:
    """Remove temporary files of killed runs; keep the result of a finished run whose files the folder has.

    Raises OutputError.
    """
    for folder in (output, output / spec.name, *output.glob("previous_*")):
        remove_stale(folder)
    if spec.keeps_record and group.rank == 0 and is_done(output, spec.name):
        backup(result_file(output, spec.name))


def execute(spec: ModeSpec, config: Config, group: ProcessGroup, **arguments: Any) -> dict[str, Any]:
    """Run the mode's function.

    Args:
        spec: the mode.
        config: the configuration, validated.
        group: given to modes that run on several devices or machines.
        arguments: more arguments of the function.

    Returns the content of the result file. Raises FeatError, and what else the mode raises.
    """
    importlib.import_module("paddlex_feat.data.images.opencv")  # raises if OpenCV is damaged
    run = spec.load()
    if spec.multi_device or spec.multi_machine:
        arguments["group"] = group
    with silent_opencv():
        return run(config, Path(config.Global.output), **arguments)


def finish_record(spec: ModeSpec, output: Path, group: ProcessGroup) -> None:
    """Record the outputs of a finished run in its run.json."""
    if spec.keeps_record and group.rank == 0:
        run_record.write_end(output)


def known_cause(error: Exception, spec: ModeSpec, output: Path, group: ProcessGroup) -> FeatError | None:
    """What to raise for an error of Python or a library whose cause is known, such as a lack of memory; else None."""
    lacking = out_of_memory(error, f"mode {spec.name}", spec.memory_fix)
    if lacking:  # before the connection: on several GPUs the text may name NCCL
        return lacking
    if group.size > 1 and _OF_THE_CONNECTION.search(str(error)):
        return ConnectionLostError(
            "The connection to another process of the job was lost.",
            where=f"worker {group.rank}",
            fix=f"See the errors of the other processes in {output / logs_folder(spec.name)}.",
            code="connection-lost",
        )
    if isinstance(error, (FileNotFoundError, SystemError)) and run_record.working_directory() is None:
        return FeatError(  # importing Paddle asks for it; Python 3.13's import itself ends in a SystemError
            "The working directory has been removed.",
            where=f"mode {spec.name}",
            fix="Change to an existing folder, and run again.",
            code="working-directory-removed",
        )
    return None
