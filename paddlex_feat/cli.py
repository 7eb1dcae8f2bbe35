"""The command: arguments -> Config -> one mode -> `<output>/<mode>_result.json` -> exit code."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from paddlex_feat import __version__
from paddlex_feat.config import load
from paddlex_feat.config.describe import keys_help
from paddlex_feat.config.schema import MODES, Config
from paddlex_feat.errors import ConfigError, FeatError, Interrupted, OutputError
from paddlex_feat.files import output_errors, write_json

log = logging.getLogger("paddlex_feat")
EPILOG = """exit codes: 0 done; 1 the mode or the configuration failed, the reason is on standard error
and in <output>/<mode>_result.json; 2 the command line is not understood.

examples:
  python main.py -c PP-ShiTuV2_rec -o Global.mode=check_dataset -o Global.dataset_dir=./dataset/mine
  python main.py -c my.yaml -o Global.mode=train -o Train.epochs_iters=40 -o Global.device=gpu:0
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
    """Messages to standard error; the same with time and tracebacks to `<output>/<mode>.log`."""
    with output_errors(output):
        output.mkdir(parents=True, exist_ok=True)
        to_file = logging.FileHandler(output / f"{mode}.log", mode="a", encoding="utf-8")
    to_file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.addHandler(to_file)
    log.setLevel(logging.DEBUG)  # the console takes INFO and above


def _configure_console() -> None:
    from paddlex_feat.console import ConsoleHandler

    log.handlers = [ConsoleHandler()]
    log.setLevel(logging.INFO)
    log.propagate = False


def _fail(error: FeatError, mode: str, output: Path) -> int:
    """Report an error on the console, in the log and in the result file."""
    log.error("%s", error)
    log.debug("traceback", exc_info=error)
    result = {"done_flag": False, **error.result, "err_type": str(type(error)), "err_msg": str(error)}
    try:
        write_json(output / f"{mode}_result.json", result)
    except OutputError as failure:
        log.error("%s", failure)
    return 1


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _drop_stdout() -> None:
    """Send the rest of standard output nowhere: its reader has gone, as that of `… | head` does."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(config: Config) -> int:
    """Run the configured mode; 0 if it succeeded, 1 if not."""
    mode, output = config.Global.mode, Path(config.Global.output)
    try:
        _start_logging(mode, output)
        result_file = output / f"{mode}_result.json"
        # Whoever reads the file of a run that is under way, or was killed, must not find an older success.
        write_json(result_file, {"done_flag": False, "err_type": "unfinished", "err_msg": "The run has not ended."})
        signal.signal(signal.SIGTERM, _on_sigterm)
        result = importlib.import_module(f"paddlex_feat.modes.{mode}").run(config, output)
        write_json(result_file, {"done_flag": True, **result})
        return 0
    except FeatError as error:
        return _fail(error, mode, output)
    except KeyboardInterrupt:
        return _fail(
            Interrupted("Interrupted.", where=mode, fix="What was written before is whole; run again."), mode, output
        )
    except BrokenPipeError:
        _drop_stdout()
        gone = OutputError("Standard output was closed by its reader.", where=mode, fix="Redirect it to a file.")
        return _fail(gone, mode, output)
    except Exception as error:  # noqa: BLE001 - a fault of this program: still three lines, traceback in the log
        wrapped = FeatError(
            f"Unexpected {type(error).__name__}: {error}",
            where=f"mode {mode}",
            fix=f"This is a fault of paddlex_feat; please report it with {output / f'{mode}.log'}.",
        )
        wrapped.__cause__ = error
        return _fail(wrapped, mode, output)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `main.py` and of the command `paddlex-feat`; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.help:
        try:
            print(parser.format_help() + "\n" + keys_help(), flush=True)
        except BrokenPipeError:
            _drop_stdout()
        return 0
    if not args.config:
        parser.error(f"-c is required: a YAML file or one of {', '.join(sorted(load.shipped()))}")
    _configure_console()
    if args.profiler_options:
        log.warning("-p/--profiler_options has no effect here.")
    try:
        config, notices = load.load(args.config, args.override)
    except ConfigError as error:
        known = load.peek(args.config, args.override)
        return _fail(error, known["mode"] if known["mode"] in MODES else MODES[0], Path(known["output"]))
    for notice in notices:
        log.info(notice)
    return run(config)


if __name__ == "__main__":
    sys.exit(main())
