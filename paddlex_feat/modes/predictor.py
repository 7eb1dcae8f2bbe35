"""The model of the section Predict, and inputs for it: what the modes predict, index and search share."""

from __future__ import annotations

from typing import Any

from paddlex_feat.config.schema import Config, PredictSection
from paddlex_feat.errors import ConfigError, ImageError
from paddlex_feat.fileio.paths import expand_home
from paddlex_feat.inference.engines import AUTO, HPI, find_engine
from paddlex_feat.inference.engines.options import find_run_mode
from paddlex_feat.inference.predictor import Predictor, create_model
from paddlex_feat.inference.results import Failed
from paddlex_feat.modes.worker import init_worker, threads_of
from paddlex_feat.runtime.device import first_device
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle

_MAX_LISTED = 5  # failed inputs that an error names; the result file has all


def inputs_of(key: str, given: Any) -> Any:
    """The value of a configuration key as an input of `Predictor.predict`.

    Integers are texts, for they are names, but in boxes. Raises ConfigError for no value, and for one whose original
    text is lost.
    """
    if given in (None, "", [], {}):
        raise ConfigError(
            "No input is given.", where=key, fix="Give an image, a folder, a URL or a list.", code="input-missing"
        )
    return _as_text(key, given)


def _as_text(key: str, given: Any) -> Any:
    if isinstance(given, list):
        return [_as_text(key, element) for element in given]
    if isinstance(given, dict):
        return {name: value if name in ("box", "boxes") else _as_text(key, value) for name, value in given.items()}
    if given is None or isinstance(given, (bool, float)):
        raise ConfigError(
            f"{key} needs names, but YAML reads this one as the value {given!r}.",
            where=key,
            fix=f"Put it in quotes twice, as in -o {key}='\"1.0\"'.",
            code="input-not-text",
        )
    return expand_home(given) if isinstance(given, str) else str(given)


def predictor_of(config: Config, group: ProcessGroup | None = None) -> Predictor:
    """The model that the section Predict names, on this process's device. Raises the errors of `create_model`.

    group: the processes of a job, each with a device of its own, that share the images of rank 0.
    """
    settings = config.Predict
    if group is None or group.size == 1:
        device, threads = first_device(config.Global.device), config.Global.threads
    else:
        prepare_paddle(threads_of(config, group))
        worker = init_worker(config, group)
        device, threads = worker.device, worker.threads
    return create_model(
        config.Global.model,
        settings.model_dir,
        device=device,
        batch_size=settings.batch_size,
        engine=settings.engine,
        precision=settings.precision,
        threads=threads,
        fast_decode=settings.fast_decode,
        engine_config=settings.engine_config,
        pp_option=settings.kernel_option.model_dump(),
        use_hpip=settings.use_hpip,
        hpi_config=settings.hpi_config,
        trust_graph=settings.trust_graph,
        mirror=settings.mirror,
        group=group,
    )


def check_names(settings: PredictSection) -> None:
    """Raise ConfigError, with its key, for an engine or run mode that does not exist."""
    if settings.engine not in (None, AUTO, HPI):
        find_engine(settings.engine, "Predict.engine")
    find_run_mode(settings.kernel_option.run_mode, "Predict.kernel_option.run_mode")


def failures_of(failed: list[Failed], kept: str, where: str) -> ImageError:
    """The error of inputs that could not be used, of which the first _MAX_LISTED are named.

    Args:
        failed: these inputs.
        kept: what became of the others, with its punctuation.
        where: configuration key of the input.
    """
    count = "One input" if len(failed) == 1 else f"{len(failed)} inputs"
    fixes = list(dict.fromkeys(input.fix for input in failed if input.fix))
    rows = [f"{': '.join(input)} {input.fix if len(fixes) > 1 else ''}".rstrip() for input in failed[:_MAX_LISTED]]
    if len(failed) > _MAX_LISTED:
        rows.append(f"and {len(failed) - _MAX_LISTED} more, all in the result file")
    return ImageError(
        f"{count} failed{kept}:\n    " + "\n    ".join(rows),
        where=where,
        fix=fixes[0] if len(fixes) == 1 else "Replace or remove them.",
        code="inputs-failed",
    )
