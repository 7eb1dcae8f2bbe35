"""The Python API: modes as functions with typed results.

They write what the modes write, except `<mode>.log` and `<mode>_result.json`, which belong to the command. Errors are
raised as FeatError. See docs/python.md for what they change in the process.
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paddlex_feat.config import load
from paddlex_feat.config.problems import listed, unusable_paths
from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError, DatasetError, FeatError
from paddlex_feat.fileio import backups
from paddlex_feat.modes import ModeSpec, parts, session
from paddlex_feat.modes.callbacks import CallbackList, Status, TrainingCallback
from paddlex_feat.runtime import launch, signals
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.process import one_run

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckResult:
    """What `check_dataset` found.

    Attributes:
        passed: no finding is an error.
        findings: code, severity, where, message and fix of each, as in check_dataset_result.json.
        report: the HTML report.
        details: the whole content of the result file.
    """

    passed: bool
    findings: list[dict[str, Any]]
    report: Path
    details: dict[str, Any]


@dataclass(frozen=True)
class TrainResult:
    """What `train` made.

    Attributes:
        recall1: of the best evaluation, 0 to 1.
        weights: the best weights (.pdparams).
        inference_dir: their inference model.
        details: the whole content of the result file.
    """

    recall1: float
    weights: Path
    inference_dir: Path
    details: dict[str, Any]


@dataclass(frozen=True)
class EvaluateResult:
    """What `evaluate` measured.

    Attributes:
        metrics: recall1, recall5 and mAP, 0 to 1; other recall@k are in `details`.
        report: the HTML report.
        details: the whole content of the result file.
    """

    metrics: dict[str, float]
    report: Path
    details: dict[str, Any]


@dataclass(frozen=True)
class ExportResult:
    """What `export` wrote.

    Attributes:
        inference_dir: the inference model.
        files: its files.
        largest_difference: of a unit feature to that of the weights.
        details: the whole content of the result file.
    """

    inference_dir: Path
    files: list[Path]
    largest_difference: float
    details: dict[str, Any]


def load_config(file: str | os.PathLike[str], overrides: Mapping[str, Any] | None = None, **keys: Any) -> Config:
    """Read a configuration file or a shipped configuration.

    Args:
        file: a YAML file, or the name of a shipped one, such as "PP-ShiTuV2_rec".
        overrides: dotted key -> value, such as {"Train.epochs_iters": 40}.
        keys: the same with two underscores for the dot: Train__epochs_iters=40.

    Returns:
        The validated configuration, which is immutable.

    Raises:
        ConfigError: all problems of file and keys, one per line.
    """
    given = {**(overrides or {}), **{name.replace("__", "."): value for name, value in keys.items()}}
    pairs = [(name, os.fspath(v) if isinstance(v, os.PathLike) else v) for name, v in given.items()]
    config, notices = load.load(os.fspath(file), pairs, usable=False, check=parts.find_problems)
    for notice in notices:
        log.info(notice)
    return config


def check_dataset(config: Config) -> CheckResult:
    """Check the data set of `Global.dataset_dir`; convert and split it first if the configuration says so.

    Args:
        config: keys of the sections Global, CheckDataset and Train.

    Returns:
        All findings; errors among them do not raise.

    Raises:
        FeatError: the lists cannot be read, or the output cannot be written.
    """
    config = _in_mode(config, "check_dataset")
    try:
        details = _run(config)
    except DatasetError as error:
        if "attributes" not in error.result:  # the check itself could not be made
            raise
        details = error.result
    report = Path(config.Global.output) / "check_dataset" / "report.html"
    return CheckResult(details["check_pass"], details["findings"], report, details)


def train(config: Config, callbacks: Sequence[TrainingCallback] = ()) -> TrainResult:
    """Train a network.

    Args:
        config: keys of the sections Global, Model, Train, Evaluate and Export.
        callbacks: told of the run's events, on rank 0. Only a run in this process has them: not one for which `train`
            starts a process per device.

    Returns:
        The best weights and their inference model. On ranks other than 0 too, once rank 0 has written them.

    Raises:
        FeatError: among them TrainingError if the loss is not finite or a callback fails, and ConfigError for
            callbacks of a run that has processes of its own.
    """
    config, group = _in_mode(config, "train"), ProcessGroup.from_environment()
    if callbacks and launch.needs_workers(config.Global.device, config.Train.dist_ips, group):
        raise ConfigError(
            f"A run on {config.Global.device} has processes of its own, which cannot call back.",
            where="callbacks",
            fix="Choose one device, or start this program itself with paddle.distributed.launch.",
            code="callbacks-in-other-process",
        )
    details = _run(config, None if group.rank else CallbackList(callbacks))
    output = Path(config.Global.output)
    best = details["models"]["best"] if details else {}
    return TrainResult(
        best.get("score", float("nan")),
        output / "best_model" / "best_model.pdparams",
        output / "best_model" / "inference",
        details,
    )


def evaluate(config: Config) -> EvaluateResult:
    """Measure recall@k and mAP of the weights or inference model of `Evaluate.weight_path`.

    Args:
        config: keys of the sections Global and Evaluate; of Model and Train if the weights have no config.yaml.

    Raises:
        FeatError: among them DatasetError for lists without matches, WeightsError for unusable weights.
    """
    config = _in_mode(config, "evaluate")
    details = _run(config)
    report = Path(config.Global.output) / "evaluate" / "report.html"
    return EvaluateResult(details.get("metrics", {}), report, details)


def export(config: Config) -> ExportResult:
    """Write the inference model of `Export.weight_path` to `Global.output`, and compare it with the weights.

    Args:
        config: keys of the sections Global and Export.

    Raises:
        FeatError: among them WeightsError if the features differ by more than `Export.tolerance`.
    """
    config = _in_mode(config, "export")
    details, output = _run(config), Path(config.Global.output)
    return ExportResult(output, [output / name for name in details["files"]], details["largest_difference"], details)


def _in_mode(config: Config, mode: str) -> Config:
    """The configuration with this mode. Raises ConfigError for what the mode cannot use, before anything is written."""
    settings = config.model_dump()
    settings["Global"] |= {"mode": mode, "mode_options": {}}
    try:  # `model_copy` does not validate what it changes
        config = Config.model_validate(settings)
    except ValidationError as error:
        problems, more = listed(error, {}, {})
        problems += [f"… and {more} more"] if more else []
    else:
        problems = unusable_paths(config, {})
        problems += [f"{problem.key}: {problem.message}" for problem in parts.find_problems(config)]
    if problems:
        raise ConfigError(
            "Problems in the configuration:\n    " + "\n    ".join(problems),
            where="config",
            fix="Correct the keys named, for instance with load_config.",
            code="invalid-config",
        )
    return config


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Within the block this is the only run of the process; signal handlers and warning filters stay the caller's."""
    with one_run(), signals.left_alone(), warnings.catch_warnings():
        yield


def _run(config: Config, callbacks: CallbackList | None = None) -> dict[str, Any]:
    """Run the mode of the configuration; the content of its result file."""
    with _told(callbacks) as result, _undisturbed():
        group, output = ProcessGroup.from_environment(), Path(config.Global.output)
        with session.open_output(config, group) as spec:
            former = session.result_file(output, spec.run_name(config))
            if group.rank == 0 and former.exists():
                backups.backup(former)  # an earlier run's, whose files are replaced
            session.prepare_output(spec, output, group)
            arguments = {}
            if callbacks:
                arguments["on_record"] = callbacks.on_record
                callbacks.on_start(config.model_dump(mode="json"))
            result.update(_execute(spec, config, group, arguments))
            session.finish_record(spec, output, group)
    return result


def _execute(spec: ModeSpec, config: Config, group: ProcessGroup, arguments: dict[str, Any]) -> dict[str, Any]:
    try:
        return session.execute(spec, config, group, **arguments)
    except FeatError:
        raise
    except Exception as error:
        known = session.known_cause(error, spec, Path(config.Global.output), group)
        if known is None:
            raise
        raise known from error


@contextmanager
def _told(callbacks: CallbackList | None) -> Iterator[dict[str, Any]]:
    """Tell callbacks of the end of the block, which fills the result. Another run may start in `on_end`."""
    result: dict[str, Any] = {}
    try:
        yield result
    except BaseException as error:
        if callbacks and callbacks.started:
            status: Status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            code = error.code if isinstance(error, FeatError) else "unexpected"
            try:
                callbacks.on_end(status, {"err_type": type(error).__name__, "err_code": code, "err_msg": str(error)})
            except FeatError as failure:  # the error that ended the run is the one to raise
                log.error("%s", failure)
        raise
    if callbacks:
        callbacks.on_end("finished", result)
