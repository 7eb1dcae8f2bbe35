"""Mode predict: feature vectors of images, printed and saved, one file an image or one file for all."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from paddlex_feat.config.schema import Config
from paddlex_feat.errors import ConfigError, FeatError, ImageError, Interrupted, as_output_error
from paddlex_feat.fileio.paths import expand_home
from paddlex_feat.hub.urls import without_password
from paddlex_feat.inference.input_texts import ACCEPTED, cut
from paddlex_feat.inference.predictor import Predictor, create_model
from paddlex_feat.inference.results import Failed, FeatureResult
from paddlex_feat.inference.writers import FeatureFile, feature_file
from paddlex_feat.runtime.device import first_device
from paddlex_feat.runtime.progress import bar

log = logging.getLogger(__name__)
_NAMED = 5  # failed inputs that the error names; predict_result.json has all


class _Target(Protocol):
    def add(self, result: FeatureResult) -> None: ...


class _Json:
    """Each result printed, and in a file of its own."""

    def __init__(self, output: Path, names: list[str]):
        self._output = output
        self._names = names

    def add(self, result: FeatureResult) -> None:
        self._names.append(str(result.save_to_json(self._output).relative_to(self._output)))
        with as_output_error(Path("standard output"), "redirect it to a file with room"):
            result.print(format_json=False)


@contextmanager
def _target(form: str, output: Path, names: list[str]) -> Iterator[_Target]:
    """Where results go; `names` are the files that were written, when the block has ended."""
    if form == "json":
        yield _Json(output, names)
        return
    path = output / f"features.{form}"
    file: FeatureFile | None = None
    try:
        with feature_file(path) as file:
            yield file
    finally:  # by an error and by Ctrl-C too, unless the file itself could not be written
        if file is not None and file.placed:
            names.append(path.name)


def run(config: Config, output: Path) -> dict[str, Any]:
    """Extract the features of Predict.input and save them in the form Predict.save.

    Raises ImageError if an input failed; the others' results are kept.
    """
    settings = config.Predict
    if settings.input in (None, "", [], {}):
        raise ConfigError("Nothing to predict.", where="Predict.input", fix="Give an image, a folder, a URL or a list.")
    given = _as_text(settings.input)
    names: list[str] = []
    failed: list[Failed] = []
    left_out: dict[str, int] = {}
    images, started = 0, time.perf_counter()

    def found() -> dict[str, Any]:
        rows = [{"input": name, "message": message} for name, message in failed]
        return {"images": images, "failed": rows, "left_out": dict(left_out), "results": names}

    try:
        with _target(settings.save, output, names) as target, _progress(settings.save) as progress:
            model = _model(config)
            started = time.perf_counter()
            results = model.predict(given, on_error=settings.on_error)
            failed, left_out = model.failed, model.left_out
            with closing(results):
                for result in results:
                    target.add(result)
                    images += 1
                    progress.update()
    except FeatError as error:
        raise error.with_result(found()) from error.__cause__
    except KeyboardInterrupt:
        fix = "What was saved before is whole; run again."
        raise Interrupted("Interrupted.", where="predict", fix=fix).with_result(found()) from None
    _report(
        images,
        failed,
        time.perf_counter() - started,
        output / ("<name>_res.json" if settings.save == "json" else f"features.{settings.save}"),
    )
    if failed:
        raise _failures(failed, images, output).with_result(found())
    if not images:
        raise ImageError(
            "The input holds no image.",
            where=f"Predict.input={cut(without_password(repr(settings.input)))}",
            fix=f"Give {ACCEPTED}.",
        ).with_result(found())
    return found()


def _as_text(given: Any) -> Any:
    """The input with whole numbers as text: they are names. Raises ConfigError for a value whose text is lost."""
    if isinstance(given, list):
        return [_as_text(element) for element in given]
    if isinstance(given, dict):
        return {key: _as_text(value) for key, value in given.items()}
    if given is None or isinstance(given, (bool, float)):
        raise ConfigError(
            f"A name is needed, and YAML takes it for the value {given!r}.",
            where="Predict.input",
            fix="Put it in quotes twice, as in -o Predict.input='\"1.0\"'.",
        )
    return expand_home(given) if isinstance(given, str) else str(given)


def _model(config: Config) -> Predictor:
    settings = config.Predict
    return create_model(
        config.Global.model,
        settings.model_dir,
        device=first_device(config.Global.device),
        batch_size=settings.batch_size,
        engine=settings.engine,
        precision=settings.precision,
        threads=config.Global.threads,
        fast_decode=settings.fast_decode,
        engine_config=settings.engine_config,
        pp_option=settings.kernel_option.model_dump(),
        use_hpip=settings.use_hpip,
        hpi_config=settings.hpi_config,
    )


def _progress(form: str) -> tqdm:
    """A bar, unless results are printed to a terminal, whose lines it would share."""
    printed = form == "json" and bool(sys.stdout and sys.stdout.isatty())
    return bar(None, "predicting", "images", shown=not printed)


def _report(images: int, failed: list[Failed], seconds: float, where: Path) -> None:
    rate = f"{_counted(images)}, {len(failed)} failed, {images / seconds:.1f} images/s"
    log.info("%s; results in %s", rate, where) if images else log.info("%s", rate)


def _failures(failed: list[Failed], images: int, output: Path) -> ImageError:
    count = "One input" if len(failed) == 1 else f"{len(failed)} inputs"
    fixes = list(dict.fromkeys(input.fix for input in failed if input.fix))
    rows = [f"{': '.join(input)} {input.fix if len(fixes) > 1 else ''}".rstrip() for input in failed[:_NAMED]]
    if len(failed) > _NAMED:
        rows.append(f"and {len(failed) - _NAMED} more, all in predict_result.json")
    kept = f"; what the other {_counted(images)} gave is kept" if images else ", and there is no other"
    return ImageError(
        f"{count} failed{kept}:\n    " + "\n    ".join(rows),
        where="Predict.input",
        fix=fixes[0] if len(fixes) == 1 else "Replace or remove them.",
    )


def _counted(images: int) -> str:
    return "1 image" if images == 1 else f"{images} images"
