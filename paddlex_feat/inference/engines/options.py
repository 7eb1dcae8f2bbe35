"""Every way to ask for an engine, PaddleX's among them, brought to one form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import Any

from paddlex_feat.errors import ConfigError

# What users may say -> our names.
ENGINES = {
    "paddle": "paddle",
    "paddle_static": "paddle",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "openvino": "openvino",
    "auto": "auto",
    "hpi": "auto",
}
_BACKENDS = ("paddle", "onnx", "onnxruntime", "openvino")
# PaddleX's run modes -> (engine, precision). "paddle" is what its configuration files hold where nobody has chosen.
_RUN_MODES: dict[str, tuple[str | None, str | None]] = {
    "paddle": (None, None),
    "paddle_fp32": ("paddle", "fp32"),
    "mkldnn": ("paddle", "fp32"),
    "paddle_fp16": ("paddle", "fp16"),
    "mkldnn_bf16": ("paddle", "bf16"),
}
_PLACE = ("device_type", "device_id")
_OPTION_KEYS = ("run_mode", "cpu_threads", "intra_op_num_threads", *_PLACE)
_HPI_KEYS = ("backend", "backend_config", "auto_config", "auto_paddle2onnx", *_PLACE)
_BACKEND_KEYS = ("cpu_num_threads",)
# PaddleX knows these too; they tune what is not here, or name one of its own files.
_REFUSED = (
    "delete_pass, enable_new_ir, enable_cinn, mkldnn_cache_capacity, trt_*, shape_info_filename, providers, "
    "provider_options, graph_optimization_level, inter_op_num_threads, execution_mode, session_options, hpi_info"
)


@dataclass(frozen=True)
class EngineOptions:
    """What `create_engine` takes: engine, precision, threads (0: by default) and device ("auto": by default)."""

    engine: str
    precision: str
    threads: int
    device: str


class _OptionMerger:
    """What was asked for, and where: two that differ are an error that names both."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[Any, str]] = {}

    def add(self, what: str, value: Any, where: str) -> None:
        if value is None:
            return
        other, there = self._said.setdefault(what, (value, where))
        if other != value:
            raise ConfigError(
                f"{there} and {where} contradict each other: {what} {other} and {value}.",
                where=where.partition("=")[0],
                fix="Leave one of them out.",
            )

    def get(self, what: str, default: Any) -> Any:
        return self._said.get(what, (default, ""))[0]


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
    """Bring all settings to one form; PaddleX's names and dictionaries mean here what they mean there.

    Args:
        engine: a key of ENGINES. precision: "fp32", "bf16" or "fp16". threads: 0 says nothing.
        device: "auto" and None say nothing.
        engine_config: run_mode, cpu_threads or intra_op_num_threads, device_type, device_id.
        pp_option: a dictionary of the same keys, or an object with such attributes.
        use_hpip: the fastest engine, or the one that `hpi_config` names.
        hpi_config: backend, backend_config (cpu_num_threads), device_type, device_id.

    Raises ConfigError for two that contradict each other, for an unknown key or value, and for TensorRT.
    """
    wishes = _OptionMerger()
    wishes.add("precision", precision, f"precision={precision}")
    if threads != 0:
        _add_threads(wishes, "threads", threads)
    if device not in (None, "auto"):
        wishes.add("device", _full(str(device)), f"device={device}")
    if engine == "hpi" and engine_config:
        if hpi_config:
            raise ConfigError("engine=hpi takes hpi_config or engine_config, not both.", where="engine_config")
        engine_config, hpi_config = None, engine_config
    wants_hpi = use_hpip or engine == "hpi"
    if hpi_config and not wants_hpi:
        raise ConfigError(
            "hpi_config is given and use_hpip is not.", where="hpi_config", fix="Set use_hpip, or remove hpi_config."
        )
    if engine is not None and engine not in ENGINES:
        raise ConfigError(f"{engine!r} is no engine.", where="engine", fix=f"Possible are {', '.join(ENGINES)}.")
    backend = _add_hpi(wishes, hpi_config or {})
    if engine is not None and engine != "hpi":
        wishes.add("engine", ENGINES[engine], f"engine={engine}")
    if wants_hpi:
        said = f"hpi_config.backend={backend}" if backend else "use_hpip" if use_hpip else "engine=hpi"
        wishes.add("engine", ENGINES[backend or "auto"], said)
    for name, options in (("engine_config", engine_config), ("pp_option", pp_option)):
        _add_options(wishes, name, options)
    return EngineOptions(
        wishes.get("engine", "paddle"),
        wishes.get("precision", "fp32"),
        wishes.get("threads", 0),
        wishes.get("device", "auto"),
    )


def _add_options(wishes: _OptionMerger, name: str, options: Any) -> None:
    """engine_config and pp_option; an object's other attributes are PaddleX's own affair."""
    if options is None:
        return
    if hasattr(options, "run_mode"):
        options = {key: getattr(options, key, None) for key in ("run_mode", "cpu_threads", *_PLACE)}
    _check_keys(name, options, _OPTION_KEYS)
    mode = options.get("run_mode")
    if mode is not None:
        if str(mode).startswith("trt_"):
            raise ConfigError(
                f"TensorRT is not supported: {name}.run_mode={mode}.",
                where=f"{name}.run_mode",
                fix="Use paddle_fp32 or paddle_fp16 on a GPU, or an engine of onnx, openvino and auto on a CPU.",
            )
        if mode not in _RUN_MODES:
            raise ConfigError(
                f"{mode!r} is no run_mode.", where=f"{name}.run_mode", fix=f"Possible are {', '.join(_RUN_MODES)}."
            )
        for what, value in zip(("engine", "precision"), _RUN_MODES[mode], strict=True):
            wishes.add(what, value, f"{name}.run_mode={mode}")
    for key in ("cpu_threads", "intra_op_num_threads"):
        _add_threads(wishes, f"{name}.{key}", options.get(key))
    _add_place(wishes, name, options)


def _add_hpi(wishes: _OptionMerger, options: Mapping[str, Any]) -> str | None:
    """hpi_config; returns its backend."""
    _check_keys("hpi_config", options, _HPI_KEYS)
    backend = options.get("backend")
    if backend is not None and backend not in _BACKENDS:
        raise ConfigError(
            f"{backend!r} is no backend here.",
            where="hpi_config.backend",
            fix=f"Possible are {', '.join(_BACKENDS)}.",
        )
    for key in ("auto_config", "auto_paddle2onnx"):
        if options.get(key) not in (None, True):
            raise ConfigError(
                f"hpi_config.{key} cannot be switched off.", where="hpi_config", fix="Name an engine instead."
            )
    backend_config = options.get("backend_config") or {}
    _check_keys("hpi_config.backend_config", backend_config, _BACKEND_KEYS)
    where = "hpi_config.backend_config.cpu_num_threads"
    _add_threads(wishes, where, backend_config.get("cpu_num_threads"))
    _add_place(wishes, "hpi_config", options)
    return backend


def _check_keys(name: str, options: Any, known: tuple[str, ...]) -> None:
    if not isinstance(options, Mapping):
        raise ConfigError(f"{name} must be a dictionary, got {options!r}.", where=name)
    unknown = sorted(str(key) for key in options if key not in known)
    if unknown:
        raise ConfigError(
            f"{name} has keys that are not known here: {', '.join(unknown)}.",
            where=name,
            fix=f"Known are {', '.join(known)}. Of PaddleX's keys, not supported are: {_REFUSED}.",
        )


def _add_threads(wishes: _OptionMerger, where: str, value: Any) -> None:
    if value is None:
        return
    if not isinstance(value, Integral) or isinstance(value, bool) or int(value) < 1:
        raise ConfigError(f"{where} must be a whole number of at least 1, got {value!r}.", where=where)
    wishes.add("threads", int(value), f"{where}={value}")


def _add_place(wishes: _OptionMerger, name: str, options: Mapping[str, Any]) -> None:
    kind, number = (options.get(key) for key in _PLACE)
    if kind is None and number is None:
        return
    kind = str(kind or "gpu").lower()
    place = kind if kind == "cpu" or number is None else f"{kind}:{number}"
    wishes.add("device", _full(place), f"{name}.device_type={place}")


def _full(device: str) -> str:
    """A device's name in one way of writing it."""
    device = device.lower()
    if re.fullmatch(r"cpu:\d+", device):
        return "cpu"
    return "gpu:0" if device == "gpu" else device
