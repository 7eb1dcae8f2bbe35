"""Mode predict: feature vectors of images, printed and saved, one file an image or one file for all."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import FeatError, ImageError, Interrupted, OutputError, as_output_error
from paddlex_feat.hub.urls import without_password
from paddlex_feat.inference.inputs.texts import ACCEPTED, cut
from paddlex_feat.inference.results import Failed, FeatureResult
from paddlex_feat.inference.writers import FeatureFile, feature_file
from paddlex_feat.modes.predict_shard import run_shard
from paddlex_feat.modes.predictor import check_names, failures_of, inputs_of, predictor_of
from paddlex_feat.modes.worker import launch_processes
from paddlex_feat.runtime import launch
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.progress import bar

log = logging.getLogger(__name__)


_STDOUT, _FULL = Path("standard output"), "redirect it to a file with room"


class _Target(Protocol):
    def add(self, result: FeatureResult) -> None: ...


class _Json:
    """Each result printed, and in a file of its own."""

    def __init__(self, output: Path, names: list[str], printed: bool):
        self._output = output
        self._names = names
        self._printed = printed

    def add(self, result: FeatureResult) -> None:
        self._names.append(str(result.save_to_json(self._output).relative_to(self._output)))
        if self._printed:
            with as_output_error(_STDOUT, _FULL):
                result.print(format_json=False)


@contextmanager
def _target(form: str, output: Path, names: list[str], printed: bool) -> Iterator[_Target]:
    """Sink of the results. When the block has ended, `names` holds the files that were written."""
    if form == "json":
        yield _Json(output, names, printed)
        return
    path = output / f"features.{form}"
    file: FeatureFile | None = None
    try:
        with feature_file(path) as file:
            yield file
    finally:  # by an error and by Ctrl-C too, unless the file itself could not be written
        if file is not None and file.placed:
            names.append(path.name)


@dataclass
class _Outcome:
    """What a run has done so far.

    Attributes:
        images: number of results.
        seconds: that prediction took.
        files: written ones, relative to the output folder.
        failed: inputs that could not be used.
        left_out: files of folders that were not read, counted by reason.
    """

    images: int = 0
    seconds: float = 0.0
    files: list[str] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def as_result(self) -> dict[str, Any]:
        """Content of predict_result.json."""
        rows = [{"input": name, "message": message} for name, message in self.failed]
        return {"images": self.images, "failed": rows, "left_out": dict(self.left_out), "results": self.files}


def run(config: Config, output: Path, group: ProcessGroup) -> dict[str, Any]:
    """Extract the features of Predict.input and save them in the form Predict.save_format.

    With several devices, each computes a share, and rank 0 saves. Raises ImageError if an input failed; the others'
    results are kept.
    """
    settings = config.Predict
    check_names(settings)
    given = inputs_of("Predict.input", settings.input)
    if launch.needs_workers(config.Global.device, None, group):
        return _on_several_devices(config, output)
    if group.rank:
        predictor_of(config, group).work()
        return {}
    if settings.shard is not None:
        return run_shard(config, given, output, group)
    outcome = _Outcome()
    try:
        _predict(config, given, output, outcome, group)
    except FeatError as error:
        raise error.with_result(outcome.as_result()) from error.__cause__
    except KeyboardInterrupt:
        fix = "Results saved so far are complete; run again."
        raise Interrupted("Interrupted.", where="predict", fix=fix).with_result(outcome.as_result()) from None
    _log_summary(
        outcome, output / ("<name>_res.json" if settings.save_format == "json" else f"features.{settings.save_format}")
    )
    if outcome.failed:
        kept = f"; the results of the other {_counted(outcome.images)} are kept"
        none = ", and there is no other"
        failure = failures_of(outcome.failed, kept if outcome.images else none, "Predict.input")
        raise failure.with_result(outcome.as_result())
    if not outcome.images:
        raise ImageError(
            "The input holds no image.",
            where=f"Predict.input={cut(without_password(repr(settings.input)))}",
            fix=f"Give {ACCEPTED}.",
            code="input-without-images",
        ).with_result(outcome.as_result())
    return outcome.as_result()


def _on_several_devices(config: Config, output: Path) -> dict[str, Any]:
    """Run the job, and print what it has saved: the processes' own standard output is a log."""
    try:
        result = launch_processes(config, output)
    except FeatError as error:
        with suppress(OutputError):  # the job's own error is the one to tell
            _print_saved(config, output, error.result)
        raise
    try:
        _print_saved(config, output, result)
    except OutputError as error:
        raise error.with_result(result) from error.__cause__
    return result


def _print_saved(config: Config, output: Path, result: Mapping[str, Any]) -> None:
    if config.Predict.save_format == "json":
        with as_output_error(_STDOUT, _FULL):
            for name in result.get("results", ()):
                print({"res": json.loads((output / name).read_bytes())})


def _predict(config: Config, given: Any, output: Path, outcome: _Outcome, group: ProcessGroup) -> None:
    """Predict and save; `outcome` is up to date at every moment, also when an error ends it."""
    form = config.Predict.save_format
    alone = group.size == 1
    with _target(form, output, outcome.files, printed=alone) as target, _progress(form) as progress:
        model = predictor_of(config, group)
        if isinstance(target, FeatureFile) and form != "jsonl":
            target.identity = model.identity
        started = time.perf_counter()
        results = model.predict(given, on_error=config.Predict.on_error)
        outcome.failed, outcome.left_out = model.failed, model.left_out
        with closing(results):
            for result in results:
                target.add(result)
                outcome.images += 1
                progress.update()
    outcome.seconds = time.perf_counter() - started


def _progress(form: str) -> tqdm:
    """A progress bar; hidden if results are printed to a terminal, where it would break their lines."""
    printed = form == "json" and bool(sys.stdout and sys.stdout.isatty())
    return bar(None, "predicting", "images", shown=not printed)


def _log_summary(outcome: _Outcome, where: Path) -> None:
    speed = outcome.images / outcome.seconds
    rate = f"{_counted(outcome.images)}, {len(outcome.failed)} failed, {speed:.1f} images/s"
    if outcome.images:
        log.info("%s; results in %s", rate, where)
    else:
        log.info("%s", rate)


def _counted(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"
