"""The command: arguments -> Config -> one mode -> `<output>/<mode>_result.json` -> exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from paddlex_feat import __version__
from paddlex_feat.config import load
from paddlex_feat.config.describe import keys_help
from paddlex_feat.config.schema import MODES, Config
from paddlex_feat.errors import (
    ConfigError,
    ConnectionLostError,
    FeatError,
    Interrupted,
    OutputError,
    as_output_error,
    out_of_memory,
    run_output,
)
from paddlex_feat.fileio.atomic import read_result, write_json
from paddlex_feat.fileio.backups import backup
from paddlex_feat.fileio.locks import locked
from paddlex_feat.fileio.temporary import remove_stale
from paddlex_feat.provenance import run_record
from paddlex_feat.runtime.distributed import ENV_COMMAND, ProcessGroup, logs_folder
from paddlex_feat.runtime.logs import log_to_console, log_to_file
from paddlex_feat.runtime.opencv import silent_opencv
from paddlex_feat.runtime.process import any_text, one_run, surroundings
from paddlex_feat.runtime.signals import ignore_others

log = logging.getLogger("paddlex_feat")
# How gloo, NCCL and the store say that a peer is gone.
_OF_THE_CONNECTION = re.compile(r"gloo|nccl|tcp_store|socket|connection|timeout", re.IGNORECASE)
# What needs less memory, by mode.
_TO_LOWER = {
    "train": "Lower Train.batch_size and raise Train.accumulate instead, or lower Evaluate.batch_size if an evaluation "
    "failed; on a GPU, Train.amp=O1 takes less. See docs/training.md.",
    "evaluate": "Lower Evaluate.batch_size or Evaluate.memory_mib.",
    "export": "Lower Train.input_size if the model allows it.",
    "predict": "Lower Predict.batch_size.",
    "check_dataset": "Lower Train.num_workers.",
}
EPILOG = """exit codes: 0 done; 1 the mode or the configuration failed, the reason is on standard error
and in <output>/<mode>_result.json, but for a faulty configuration where a finished run's result
is there, which stays; 2 the command line is not understood.

examples:
  python main.py -c PP-ShiTuV2_rec -o Global.mode=check_dataset -o Global.dataset_dir=./dataset/mine
  python main.py -c my.yaml -o Global.mode=train -o Train.epochs_iters=40 -o Global.device=gpu:0
  python main.py verify RUN [OTHER]     what differs from its run.json, or from another run; verify --help
"""


def _override(text: str) -> tuple[str, Any]:
    try:
        return load.split_override(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def build_parser() -> argparse.ArgumentParser:
    """The command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Image features: check a data set, train, evaluate, export, predict.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    parser.add_argument("-h", "--help", action="store_true", help="this text and every configuration key")
    parser.add_argument("--version", action="version", version=f"paddlex_feat {__version__}")
    parser.add_argument("-c", "--config", metavar="FILE", help="YAML file, or the name of a shipped one")
    parser.add_argument(
        "-o",
        "--override",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        type=_override,
        help="set a key; the value is a YAML scalar or list; may be repeated",
    )
    parser.add_argument("-p", "--profiler_options", help=argparse.SUPPRESS)
    return parser


def _start_logging(mode: str, output: Path) -> None:
    rank = ProcessGroup.from_environment().rank
    with as_output_error(output):
        log_to_file(output / logs_folder(mode) / f"rank_{rank}.log" if rank else output / f"{mode}.log")


def _write_result(mode: str, output: Path, result: dict[str, Any]) -> None:
    if ProcessGroup.from_environment().rank == 0:  # the others' results are rank 0's
        write_json(output / f"{mode}_result.json", result)


def _is_done(mode: str, output: Path) -> bool:
    """Does the folder hold the result of a finished run of the mode?"""
    return read_result(output / f"{mode}_result.json").get("done_flag") is True


def _keep_finished_training(output: Path) -> None:
    """A finished training's record, which describes the checkpoints beside it, outlives a later attempt."""
    if ProcessGroup.from_environment().rank == 0 and _is_done("train", output):
        backup(output / "train_result.json")


def _fail(error: FeatError, mode: str, output: Path) -> int:
    """Report an error in the result file, on the console and in the log."""
    try:
        result = {
            "done_flag": False,
            **error.result,
            "err_type": str(type(error)),
            "err_code": error.code,
            "err_msg": str(error),
        }
        _write_result(mode, output, result)
        if ProcessGroup.from_environment().size > 1:
            importlib.import_module("paddlex_feat.runtime.launch").report_failure(output / logs_folder(mode), error)
    except OutputError as failure:
        if not isinstance(error, OutputError):  # which has said so already
            log.error("%s", failure)
    return _report(error)


def _report(error: FeatError) -> int:
    """Say an error on the console and in the log."""
    # Of a worker, the process that started it says why the job ended.
    log.log(logging.DEBUG if ENV_COMMAND in os.environ else logging.ERROR, "%s", error)
    log.debug("traceback", exc_info=error)
    return 1


def _flush_stdout() -> None:
    """Raise OutputError where standard output is full or its reader has gone, as that of `… | head` does."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left would fail again at exit
        raise OutputError(
            f"Standard output cannot be written: {error.strerror}.",
            fix="Redirect it to a file with room.",
            code="stdout-failed",
        ) from error


def _lock(
    mode: str, output: Path, several_machines: bool = False, patience: float | None = None
) -> AbstractContextManager[None]:
    """Keep other runs of the mode out of its output; raises OutputError where one is at work.

    The processes of a job share the lock, on several machines too, where the folder may be the same.
    """
    return locked(output / f".{mode}.lock", ProcessGroup.from_environment().size > 1 or several_machines, patience)


def run(config: Config) -> int:
    """Run the configured mode; 0 if it succeeded, 1 if not."""
    mode, output = config.Global.mode, Path(config.Global.output)
    several_machines = mode == "train" and bool(config.Train.dist_ips)
    try:
        with run_output(output), _lock(mode, output, several_machines), surroundings(output):
            _start_logging(mode, output)
            return _run(config, mode, output)
    except OutputError as error:  # of the lock or the log: nothing in the folder is this run's
        log.error("%s", error)
        return 1


def _run(config: Config, mode: str, output: Path) -> int:
    try:
        for folder in (output, output / mode, *output.glob("previous_*")):
            remove_stale(folder)
        if mode == "train":
            _keep_finished_training(output)
        # Whoever reads the file of a run that is under way, or was killed, must not find an older success.
        _write_result(mode, output, {"done_flag": False, "err_type": "unfinished", "err_msg": "The run has not ended."})
        importlib.import_module("paddlex_feat.data.images")  # looks whether OpenCV is whole
        run_mode = importlib.import_module(f"paddlex_feat.modes.{mode}").run
        with silent_opencv():
            result = run_mode(config, output)
        _flush_stdout()
        _write_result(mode, output, {"done_flag": True, **result})
        if mode == "train" and ProcessGroup.from_environment().rank == 0:
            run_record.end(output)
        return 0
    except FeatError as error:
        return _fail(error, mode, output)
    except KeyboardInterrupt:
        return _fail(
            Interrupted("Interrupted.", where=mode, fix="What was written before is whole; run again."), mode, output
        )
    except Exception as error:  # noqa: BLE001 - a fault of this program: still three lines, traceback in the log
        return _fail(_unexpected(error, mode, output), mode, output)


def _unexpected(error: Exception, mode: str, output: Path) -> FeatError:
    """A fault of this program, or the consequence of another process's end, in three lines."""
    group = ProcessGroup.from_environment()
    lacking = out_of_memory(error, f"mode {mode}", _TO_LOWER[mode])
    if lacking:  # before the connection: on several GPUs the text may name NCCL
        wrapped: FeatError = lacking
    elif group.size > 1 and _OF_THE_CONNECTION.search(str(error)):
        wrapped = ConnectionLostError(
            "The connection to another process of the job was lost.",
            where=f"worker {group.rank}",
            fix=f"See what the others say, in {output / logs_folder(mode)}.",
        )
    elif isinstance(error, (FileNotFoundError, SystemError)) and run_record.working_directory() is None:
        wrapped = FeatError(  # importing Paddle asks for it; Python 3.13's import itself ends in a SystemError
            "The working directory has been removed.",
            where=f"mode {mode}",
            fix="Change to a folder that is there, and run again.",
        )
    else:
        wrapped = FeatError(
            f"Unexpected {type(error).__name__}: {error}",
            where=f"mode {mode}",
            fix=f"This is a fault of paddlex_feat; please report it with {output / f'{mode}.log'}.",
            code="unexpected",
        )
    wrapped.__cause__ = error
    return wrapped


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `main.py` and of the command `paddlex-feat`; returns the exit code.

    A program may call it, also in a thread: logging, signal handlers and streams are as before when it returns.
    """
    with any_text():
        code = _main(sys.argv[1:] if argv is None else argv)
    if argv is None:  # the process ends with this, and no late signal is to change its exit code
        ignore_others()
    return code


def _main(words: Sequence[str]) -> int:
    if words[:1] == ["verify"]:
        return _verify(words[1:])
    parser = build_parser()
    args = parser.parse_args(words)
    if args.help:
        return _print_help(parser)
    if not args.config:
        parser.error(f"-c is required: a YAML file{load.or_shipped()}")
    with one_run():
        return _configured(args)


def _configured(args: argparse.Namespace) -> int:
    log_to_console()
    if ProcessGroup.from_environment().size > 1:
        importlib.import_module("paddlex_feat.runtime.launch").die_with_parent()
    if args.profiler_options:
        log.warning("-p/--profiler_options has no effect here.")
    try:
        config, notices = load.load(args.config, args.override)
    except ConfigError as error:
        return _fail_configuration(error, load.peek(args.config, args.override))
    for notice in notices:
        log.info(notice)
    return run(config)


def _verify(words: Sequence[str]) -> int:
    from paddlex_feat.provenance import verify  # reads data sets, which a faulty configuration need not wait for

    try:
        code = verify.main(words)
        _flush_stdout()
    except FeatError as error:
        return _complain(error)
    return code


def _print_help(parser: argparse.ArgumentParser) -> int:
    try:
        with suppress(OSError):
            print(parser.format_help() + "\n" + keys_help())
        _flush_stdout()
    except OutputError as error:
        return 0 if isinstance(error.__cause__, BrokenPipeError) else _complain(error)
    return 0


def _complain(error: FeatError) -> int:
    print(error, file=sys.stderr)
    return 1


def _fail_configuration(error: ConfigError, known: dict[str, str]) -> int:
    """As `_fail`, as far as mode and output can be told from a faulty configuration.

    It began no run, so the result of a finished one, to which other files belong, stays as it is.
    """
    mode, output = known["mode"], Path(known["output"])
    if mode not in MODES or not known["output"]:
        return _report(error)  # no result file is this run's
    try:
        with run_output(output), _lock(mode, output, patience=0):
            _start_logging(mode, output)
            return _report(error) if _is_done(mode, output) else _fail(error, mode, output)
    except OutputError:  # another run's folder, or one that cannot be written
        return _complain(error)


if __name__ == "__main__":
    sys.exit(main())
