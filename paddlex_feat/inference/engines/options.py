"""PaddleX's ways to choose an engine, merged into `EngineOptions`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

from paddlex_feat.config.registry import did_you_mean
from paddlex_feat.errors import ConfigError
from paddlex_feat.inference.engines import AUTO, HPI, EngineOptions, find_engine, usable_engines

# PaddleX knows these keys too; they tune what this package does not have, or name one of PaddleX's own files.
_UNSUPPORTED = (
    "delete_pass, enable_new_ir, enable_cinn, mkldnn_cache_capacity, trt_*, shape_info_filename, providers, "
    "provider_options, graph_optimization_level, inter_op_num_threads, execution_mode, session_options, hpi_info"
)
_Setting = tuple[str, Any, str]  # field of EngineOptions, value, the place that gives it and how


def _whole(value: Any) -> int | None:
    if value is not None and (not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1):
        raise ValueError(f"must be a whole number of at least 1, got {value!r}")
    return value if value is None else int(value)  # of NumPy's integers


def _on(value: Any) -> Any:
    if value not in (None, True):
        raise ValueError("cannot be switched off, name an engine instead")
    return value


Threads = Annotated[Any, AfterValidator(_whole)]
On = Annotated[Any, AfterValidator(_on)]
M = TypeVar("M", bound=BaseModel)
V = TypeVar("V")


class _Device(BaseModel):
    """The keys of a device, which both dictionaries have."""

    model_config = ConfigDict(extra="forbid")
    device_type: Any = None
    device_id: Any = None

    def device(self, name: str) -> _Setting:
        """The device that a dictionary `name` asks for."""
        if self.device_type is None and self.device_id is None:
            return "device", None, name
        kind = str(self.device_type or "gpu").lower()
        device = kind if kind == "cpu" or self.device_id is None else f"{kind}:{self.device_id}"
        return "device", _canonical(device), f"{name}.device_type={device}"


class RuntimeOptions(_Device):
    """engine_config and pp_option."""

    run_mode: Any = None
    cpu_threads: Threads = None
    intra_op_num_threads: Threads = None


class BackendOptions(BaseModel):
    """hpi_config.backend_config."""

    model_config = ConfigDict(extra="forbid")
    cpu_num_threads: Threads = None


class HpiOptions(_Device):
    """hpi_config."""

    backend: Any = None
    backend_config: Any = None
    auto_config: On = None
    auto_paddle2onnx: On = None


def resolve_engine_options(
    engine: str | None = None,
    precision: str | None = None,
    threads: int = 0,
    device: str | None = None,
    engine_config: Mapping[str, Any] | None = None,
    pp_option: Any = None,
    use_hpip: bool = False,
    hpi_config: Mapping[str, Any] | None = None,
) -> EngineOptions:
    """Merge all settings; PaddleX's names and dictionaries mean what they mean there.

    Args:
        engine: name or alias of an engine, "auto", or "hpi".
        precision: "fp32", "bf16" or "fp16".
        threads: CPU threads; 0: not given.
        device: "cpu" or "gpu:N"; "auto" and None: not given.
        engine_config: run_mode, cpu_threads or intra_op_num_threads, device_type, device_id.
        pp_option: a dictionary of the same keys, or an object with such attributes.
        use_hpip: take the fastest engine, or the one that `hpi_config` names.
        hpi_config: backend, backend_config (cpu_num_threads), device_type, device_id.

    Raises ConfigError for settings that contradict each other, for an unknown key or value, and for TensorRT.
    """
    if engine == HPI and engine_config:
        if hpi_config:
            what = "engine=hpi takes hpi_config or engine_config, not both."
            raise ConfigError(what, where="engine_config", code="engine-options-contradict")
        engine_config, hpi_config = None, engine_config
    if hpi_config and not use_hpip and engine != HPI:
        fix = "Set use_hpip, or remove hpi_config."
        raise ConfigError(
            "hpi_config is given without use_hpip.", where="hpi_config", fix=fix, code="hpi-config-unused"
        )
    settings: list[_Setting] = [("precision", precision, f"precision={precision}")]
    if threads != 0:
        try:
            settings.append(("threads", _whole(threads), f"threads={threads}"))
        except ValueError as error:
            raise ConfigError(f"threads {error}.", where="threads", code="engine-option-invalid") from None
    if device not in (None, AUTO):
        settings.append(("device", _canonical(str(device)), f"device={device}"))
    if engine not in (None, HPI):
        settings.append(("engine", AUTO if engine == AUTO else find_engine(str(engine)).name, f"engine={engine}"))
    settings += _hpi_settings(hpi_config or {}, use_hpip, engine == HPI)
    settings += _runtime_settings("engine_config", engine_config) + _runtime_settings("pp_option", pp_option)
    return _merge(settings)


def _merge(settings: Iterable[_Setting]) -> EngineOptions:
    """One value for each setting. Raises ConfigError that names both places of two values that differ."""
    merged: dict[str, tuple[Any, str]] = {}
    for name, value, place in settings:
        if value is None:
            continue
        other, first = merged.setdefault(name, (value, place))
        if other != value:
            raise ConfigError(
                f"{first} and {place} contradict each other: {name} {other} and {value}.",
                where=place.partition("=")[0],
                fix="Leave one of them out.",
                code="engine-options-contradict",
            )
    return EngineOptions(**{name: value for name, (value, _) in merged.items()})


def _hpi_settings(options: Any, use_hpip: bool, hpi: bool) -> list[_Setting]:
    """What hpi_config, use_hpip and engine=hpi ask for."""
    given = _parse(HpiOptions, "hpi_config", options)
    threads = _parse(BackendOptions, "hpi_config.backend_config", given.backend_config or {}).cpu_num_threads
    where = f"hpi_config.backend_config.cpu_num_threads={threads}"
    settings: list[_Setting] = [("threads", threads, where), given.device("hpi_config")]
    if given.backend is not None:
        backends = {name: spec.name for spec in usable_engines() for name in (spec.name, *spec.hpi_backends)}
        engine = _look_up(given.backend, backends, "backend", "hpi_config.backend")
        settings.append(("engine", engine, f"hpi_config.backend={given.backend}"))
    elif use_hpip or hpi:
        settings.append(("engine", AUTO, "use_hpip" if use_hpip else "engine=hpi"))
    return settings


def _runtime_settings(name: str, options: Any) -> list[_Setting]:
    """What engine_config or pp_option asks for; other attributes of an object are PaddleX's own."""
    if options is None:
        return []
    if hasattr(options, "run_mode"):
        options = {key: getattr(options, key, None) for key in ("run_mode", "cpu_threads", "device_type", "device_id")}
    given = _parse(RuntimeOptions, name, options)
    engine, precision = find_run_mode(given.run_mode, f"{name}.run_mode")
    return [
        ("engine", engine, f"{name}.run_mode={given.run_mode}"),
        ("precision", precision, f"{name}.run_mode={given.run_mode}"),
        ("threads", given.cpu_threads, f"{name}.cpu_threads={given.cpu_threads}"),
        ("threads", given.intra_op_num_threads, f"{name}.intra_op_num_threads={given.intra_op_num_threads}"),
        given.device(name),
    ]


def find_run_mode(mode: str | None, where: str) -> tuple[str | None, str | None]:
    """Engine and precision of one of PaddleX's run modes; (None, None) for "paddle", its default, and None.

    Raises ConfigError for an unknown run mode, and for TensorRT's.
    """
    if mode is None:
        return None, None
    if str(mode).startswith("trt_"):
        raise ConfigError(
            f"TensorRT is not supported: {where}={mode}.",
            where=where,
            fix="Use paddle_fp32 or paddle_fp16 on a GPU, or an engine of onnx, openvino and auto on a CPU.",
            code="tensorrt-unsupported",
        )
    modes: dict[str, tuple[str | None, str | None]] = {"paddle": (None, None)}
    for spec in usable_engines():
        modes |= {name: (spec.name, precision) for name, precision in spec.run_modes.items()}
    return _look_up(mode, modes, "run_mode", where)


def _look_up(name: str, known: Mapping[str, V], what: str, where: str) -> V:
    if name not in known:
        raise ConfigError(
            f"Unknown {what} {name!r}.{did_you_mean(str(name), list(known))}",
            where=where,
            fix=f"Choose from {', '.join(known)}.",
            code=f"unknown-{what.replace('_', '-')}",
        )
    return known[name]


def _parse(model: type[M], name: str, options: Any) -> M:
    """Validate the dictionary `name`. Raises ConfigError that names all keys that are unknown or have a wrong value."""
    if not isinstance(options, Mapping):
        raise ConfigError(f"{name} must be a dictionary, got {options!r}.", where=name, code="engine-option-invalid")
    try:
        return model.model_validate({str(key): value for key, value in options.items()})
    except ValidationError as error:
        problems = error.errors()
    unknown = [problem for problem in problems if problem["type"] == "extra_forbidden"]
    reasons = [
        f"{'.'.join(map(str, (name, *problem['loc'])))} {problem['msg'].removeprefix('Value error, ')}"
        for problem in unknown or problems
    ]
    raise ConfigError(
        f"{'; '.join(reasons)}.".replace("Extra inputs are not permitted", "is an unknown key"),
        where=name,
        fix=f"Known are {', '.join(model.model_fields)}. PaddleX's keys that are not supported: {_UNSUPPORTED}."
        if unknown
        else None,
        code="unknown-engine-option" if unknown else "engine-option-invalid",
    )


def _canonical(device: str) -> str:
    """One spelling of each device: "CPU:0" -> "cpu", "gpu" -> "gpu:0"."""
    device = device.lower()
    if re.fullmatch(r"cpu:\d+", device):
        return "cpu"
    return "gpu:0" if device == "gpu" else device
