"""The command line: arguments, signals, console and log file, result file, exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from paddlex_feat import __version__
from paddlex_feat.config import load
from paddlex_feat.config.describe import keys_help
from paddlex_feat.config.parts import Problem
from paddlex_feat.config.schema import Config
from paddlex_feat.errors import DependencyError, FeatError, Interrupted, OutputError, as_output_error
from paddlex_feat.fileio.atomic import write_json
from paddlex_feat.modes import MODES, ModeSpec, session
from paddlex_feat.runtime.distributed import ENV_COMMAND, ProcessGroup, logs_folder
from paddlex_feat.runtime.logs import log_to_console, log_to_file
from paddlex_feat.runtime.process import any_text, end, interruptible, one_run
from paddlex_feat.runtime.signals import ignore_others

log = logging.getLogger("paddlex_feat")
EPILOG = """exit codes: 0 done; 1 the mode or the configuration failed: the reason is on standard error and in
<output>/<mode>_result.json, but a faulty configuration does not replace the result of a finished run; 2 the
command line is not understood.

examples:
  python main.py -c PP-ShiTuV2_rec -o Global.mode=check_dataset -o Global.dataset_dir=./dataset/mine
  python main.py -c my.yaml -o Global.mode=train -o Train.epochs_iters=40 -o Global.device=gpu:0
  python main.py -c my.yaml -o Global.mode=evaluate
  python main.py -c my.yaml -o Global.mode=export -o Export.format=onnx
  python main.py -c my.yaml -o Global.mode=predict -o Predict.input=photos/
  python main.py verify RUN [OTHER]     what differs from its run.json, or from another run; verify --help
  python main.py compare A.jpg B.jpg    how similar two pictures are; compare --help
  python main.py merge TARGET SHARD…    one file of the shards of predict; merge --help
  python main.py pack DATA TARGET       a data set as tar shards; pack --help

The shipped configurations, for -c: PP-ShiTuV2_rec, PP-ShiTuV2_rec_CLIP_vit_base, PP-ShiTuV2_rec_CLIP_vit_large,
EfficientNet_Lite0_rec and a small one for a first try, PP-ShiTuV2_rec_demo. Defaults below are those of
PP-ShiTuV2_rec. In Python: docs/python.md.
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


def _modes_help() -> str:
    """The modes as `--help` shows them; those of other packages too."""
    lines = ["modes, for Global.mode:", ""]
    for name in MODES.names():
        try:
            spec = MODES.get(name)
            keys = f" (keys: {spec.section})" if spec.section else ""
            lines.append(f"  {name:15}{spec.help}{keys}")
        except DependencyError as error:
            lines.append(f"  {name:15}{error.what}")
    return "\n".join(lines) + "\n"


def _start_logging(mode: str, output: Path, group: ProcessGroup) -> None:
    with as_output_error(output):
        log_to_file(session.log_file(output, mode, group))


def _write_result(mode: str, output: Path, group: ProcessGroup, result: dict[str, Any]) -> None:
    if group.rank == 0:  # the other processes have the same
        write_json(session.result_file(output, mode), result)


def _fail(error: FeatError, mode: str, output: Path, group: ProcessGroup) -> int:
    """Report an error in the result file, on the console and in the log; the exit code."""
    names = {"err_type": str(type(error)), "err_code": error.code, "err_msg": str(error)}
    try:
        _write_result(mode, output, group, {"done_flag": False, **error.result, **names})
        if group.size > 1:
            launch = importlib.import_module("paddlex_feat.runtime.launch")
            launch.report_failure(output / logs_folder(mode), error, group.rank)
    except OutputError as failure:
        if not isinstance(error, OutputError):  # which is reported below
            log.error("%s", failure)
    return _report(error)


def _report(error: FeatError) -> int:
    """Report an error on the console and in the log; the exit code."""
    # In a worker, log at DEBUG only; the launcher reports the failure.
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


def run(config: Config, group: ProcessGroup | None = None) -> int:
    """Run the configured mode; 0 if it succeeded, 1 if not."""
    group, output = group or ProcessGroup.from_environment(), Path(config.Global.output)
    try:
        with session.open_output(config, group) as spec, interruptible():
            _start_logging(spec.run_name(config), output, group)
            return _run(config, spec, output, group)
    except FeatError as error:  # of the lock or the log: no file in the folder is this run's
        log.error("%s", error)
        return 1


def _run(config: Config, spec: ModeSpec, output: Path, group: ProcessGroup) -> int:
    mode = spec.run_name(config)
    try:
        session.prepare_output(spec, output, group)
        # A reader of the file must not take an older success for that of a running or killed run.
        unfinished = {"done_flag": False, "err_type": "unfinished", "err_msg": "The run has not ended."}
        _write_result(mode, output, group, unfinished)
        result = session.execute(spec, config, group)
        _flush_stdout()
        _write_result(mode, output, group, {"done_flag": True, **result})
        session.finish_record(spec, output, group)
        return 0
    except FeatError as error:
        return _fail(error, mode, output, group)
    except KeyboardInterrupt:
        fix = "Files that are complete stay; run again."
        return _fail(Interrupted("Interrupted.", where=mode, fix=fix, code="interrupted"), mode, output, group)
    except Exception as error:  # noqa: BLE001 - a fault of this program: still three lines, traceback in the log
        return _fail(_explain(error, spec, output, group), mode, output, group)


def _explain(error: Exception, spec: ModeSpec, output: Path, group: ProcessGroup) -> FeatError:
    """An error that is not of this package's family, in three lines."""
    explained = session.known_cause(error, spec, output, group) or FeatError(
        f"Unexpected {type(error).__name__}: {error}",
        where=f"mode {spec.name}",
        fix=f"This is a bug in paddlex_feat; please report it with {output / f'{spec.name}.log'}.",
        code="unexpected",
    )
    explained.__cause__ = error
    return explained


def command() -> NoReturn:
    """Entry point of `main.py` and of the command `paddlex-feat`: run, and end the process."""
    end(main())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv`, None: that of the process; returns the exit code.

    A program may call it, also in a thread: logging, signal handlers and streams are as before when it returns.
    """
    with any_text():
        code = _main(sys.argv[1:] if argv is None else argv)
    if argv is None:  # the process ends with this, and no late signal is to change its exit code
        ignore_others()
    return code


def _main(words: Sequence[str]) -> int:
    if words[:1] in (["verify"], ["compare"], ["merge"], ["pack"]):
        return _command(words[0], words[1:])
    parser = build_parser()
    args = parser.parse_args(words)
    if args.help:
        return _print_help(parser)
    if not args.config:
        parser.error(f"-c is required: a YAML file{load.or_shipped()}")
    try:
        with one_run():
            return _configured(args)
    except FeatError as error:  # of one_run: a callback of a run calls this command
        return _complain(error)


def _configured(args: argparse.Namespace) -> int:
    log_to_console()
    group = ProcessGroup.from_environment()
    if group.size > 1:
        importlib.import_module("paddlex_feat.runtime.launch").die_with_parent()
    if args.profiler_options:
        log.warning("-p/--profiler_options has no effect here.")
    try:
        config, notices = load.load(args.config, args.override, check=_find_problems)
        MODES.get(config.Global.mode)
    except FeatError as error:
        return _fail_configuration(error, load.peek(args.config, args.override), group)
    for notice in notices:
        log.info(notice)
    return run(config, group)


def _find_problems(config: Config) -> list[Problem]:
    from paddlex_feat.modes import parts  # --help does not need the modes

    return parts.find_problems(config)


def _command(name: str, words: Sequence[str]) -> int:
    # They read data sets and models, which a faulty configuration need not wait for.
    room = {"verify": "provenance", "compare": "inference", "merge": "inference", "pack": "data"}[name]
    command = importlib.import_module(f"paddlex_feat.{room}.{name}")
    try:
        code: int = command.main(words)
        _flush_stdout()
    except FeatError as error:
        return _complain(error)
    return code


def _print_help(parser: argparse.ArgumentParser) -> int:
    try:
        with suppress(OSError):
            print(parser.format_help(), _modes_help(), keys_help(), sep="\n")
        _flush_stdout()
    except OutputError as error:
        return 0 if isinstance(error.__cause__, BrokenPipeError) else _complain(error)
    return 0


def _complain(error: FeatError) -> int:
    print(error, file=sys.stderr)
    return 1


def _fail_configuration(error: FeatError, known: dict[str, str], group: ProcessGroup) -> int:
    """As `_fail`, as far as a faulty configuration names mode and output.

    No run was started, so an earlier run's result file is left untouched.
    """
    mode, output = known["mode"], Path(known["output"])
    if mode not in MODES or not known["output"]:
        return _report(error)  # no result file is this run's
    try:
        with session.hold_output(mode, output, group.size > 1, patience=0):
            _start_logging(mode, output, group)
            return _report(error) if session.is_done(output, mode) else _fail(error, mode, output, group)
    except OutputError:  # another run's folder, or one that cannot be written
        return _complain(error)


if __name__ == "__main__":
    sys.exit(main())
