"""From a file and `-o` assignments to one validated Config, or one error that lists all faults."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from paddlex_feat import yaml_text
from paddlex_feat.config.recipes import RECIPES
from paddlex_feat.config.schema import MODELS, Config, walk
from paddlex_feat.errors import ConfigError

_MOST_FAULTS = 20  # that are listed; each may take a search for the key that was meant
# Keys of existing files whose function has not been built yet, by the mode that would use
# them: said instead of ignored.
_NOT_YET: dict[str, dict[str, Callable[[Any], bool]]] = {
    "train": {"Train.basic_config_path": bool},
}


def shipped() -> dict[str, Path]:
    """The configuration files that come with the package, by name. Raises ConfigError if there is none."""
    folder = resources.files("paddlex_feat") / "configs" / "modules" / "image_feature"
    found = {}
    with suppress(OSError):
        found = {Path(f.name).stem: Path(str(f)) for f in folder.iterdir() if f.name.endswith(".yaml")}
    if not found:
        raise ConfigError(
            "The configuration files that belong to the package are missing.",
            where=str(folder),
            fix="Install paddlex_feat again, or give a YAML file of your own with -c.",
        )
    return found


def or_shipped() -> str:
    """What a message that asks for a YAML file adds: the names that may take its place."""
    try:
        return f" or one of {', '.join(sorted(shipped()))}"
    except ConfigError as error:
        return f" ({error.what} See {error.where})"


def find_file(name: str) -> tuple[Path, str | None]:
    """The file meant by `-c`: a path, or else the shipped file of that name, with a notice."""
    path = Path(name)
    if os.path.isfile(name):  # noqa: PTH113 - that of pathlib raises for a name that is too long
        return path, None
    files = shipped()
    stem = path.stem if path.suffix in (".yaml", ".yml") else path.name
    if stem in files:
        notice = None if name == stem else f"{name} does not exist here; using the shipped {files[stem]}."
        return files[stem], notice
    near = difflib.get_close_matches(stem, files, 1)
    raise ConfigError(
        "The configuration file does not exist." + (f" Did you mean {near[0]}?" if near else ""),
        where=f"-c {name}",
        fix=f"Give a YAML file, or one of the shipped names: {', '.join(sorted(files))}.",
    )


def split_override(text: str) -> tuple[str, Any]:
    """`a.b=value` split at the first `=`; the value is a YAML scalar and never evaluated as code.

    Raises ValueError with the reason.
    """
    name, sign, value = text.partition("=")
    if not sign or not name.strip():
        raise ValueError(f"{_short(text)} has no form KEY=VALUE")
    try:
        return name.strip(), yaml_text.parse_scalar(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{_short(text)}: the value is not valid YAML ({getattr(error, 'problem', error)})") from None


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in top.items():
        below = merged.get(name)
        merged[name] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> str | None:
    *sections, last = dotted.split(".")
    if len(sections) > yaml_text.DEEPEST:
        return f"{_short(dotted)}: no key has so many parts"
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            return f"{dotted}: {section} is a value, not a section"
    raw[last] = value
    return None


def _hint(dotted: str) -> str:
    """The nearest key, by the whole name first, then by its last part in any section."""
    names = [name for name, _ in walk()] + list(Config.model_fields)
    lowered = {name.lower(): name for name in names}
    near = difflib.get_close_matches(dotted.lower(), lowered, 1, cutoff=0.75)
    if near:
        return f" Did you mean {lowered[near[0]]}?"
    last = dotted.rsplit(".", 1)[-1].lower()
    tails = {name.rsplit(".", 1)[-1].lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(last, tails, 1, cutoff=0.8)
    return f" Did you mean {tails[near[0]]}?" if near else ""


def _faults(error: ValidationError, sources: dict[str, str]) -> tuple[list[str], int]:
    """One line per key, for the failing alternatives of a union are one fault; and how many are not listed."""
    names = {name for name, _ in walk()}
    rows: dict[str, str] = {}
    items = error.errors()
    for item in items[:_MOST_FAULTS]:
        parts = [str(p) for p in item["loc"]]
        if item["type"] == "extra_forbidden" and len(parts) == 1:
            parts = next((s for s in sources if s.startswith(f"{parts[0]}.")), parts[0]).split(".")
        while len(parts) > 1 and ".".join(parts) not in names and item["type"] != "extra_forbidden":
            if any(name.startswith(".".join(parts) + ".") for name in names):
                break
            parts.pop()
        dotted = ".".join(parts)
        where = f" ({sources[dotted]})" if dotted in sources else ""
        if item["type"] == "extra_forbidden":
            message = "unknown key." + _hint(dotted)
        else:
            message = f"{item['msg'].removeprefix('Value error, ')}, got {_short(item['input'])}"
            if item["type"] == "string_type" and isinstance(item["input"], int | float):
                message += f"; as text it is \"'{item['input']}'\""
        rows[dotted] = f"{rows[dotted]}; or {message}" if dotted in rows else f"{dotted}{where}: {message}"
    return list(rows.values()), max(0, len(items) - _MOST_FAULTS)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def _model_of(raw: dict[str, Any]) -> str:
    section = raw.get("Global")
    name = section.get("model") if isinstance(section, dict) else None
    return name if name in MODELS else MODELS[0]


def load(file: str, overrides: list[tuple[str, Any]]) -> tuple[Config, list[str]]:
    """Read, merge and validate.

    Args:
        file: what `-c` gave, a path or a shipped name.
        overrides: (dotted key, value) pairs in the order given; the last one wins.

    Returns the Config and notices for the log. Raises ConfigError that lists every fault.
    """
    path, notice = find_file(file)
    notices = [notice] if notice else []
    try:
        text = yaml_text.read_text(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The file cannot be read: {getattr(error, 'strerror', None) or error}.",
            where=str(path),
            fix=f"Give UTF-8 text of at most {yaml_text.MOST_CHARACTERS:,} characters.",
        ) from None
    raw, lines = yaml_text.parse(text, str(path))
    sources = {dotted: f"{path}:{line}" for dotted, line in lines.items()}
    faults, more = [], 0
    for dotted, value in overrides:
        sources[dotted] = "-o"
        fault = _assign(raw, dotted, copy.deepcopy(value))
        faults += [fault] if fault else []
    merged = _merge(RECIPES[_model_of(raw)], {k: v for k, v in raw.items() if v is not None})
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        listed, more = _faults(error, sources)
        faults += listed
    if not faults:
        faults += _unsupported(config, sources) + _misfits(config, sources)
    if faults:
        count = "One fault" if len(faults) + more == 1 else f"{len(faults) + more} faults"
        faults += [f"… and {more} more"] if more else []
        raise ConfigError(
            f"{count} in the configuration:\n    " + "\n    ".join(faults),
            where=str(path),
            fix="Correct the keys named; `--help` lists all keys.",
        )
    return config, notices


def _unsupported(config: Config, sources: dict[str, str]) -> list[str]:
    rows = []
    for dotted, wanted in _NOT_YET.get(config.Global.mode, {}).items():
        value: Any = config
        for part in dotted.split("."):
            value = getattr(value, part)
        if wanted(value):
            where = f" ({sources[dotted]})" if dotted in sources else ""
            rows.append(f"{dotted}{where}: {value!r} is not implemented yet; leave the key out")
    return rows


def _misfits(config: Config, sources: dict[str, str]) -> list[str]:
    """Values that are sound alone and do not fit each other."""
    steps = {"PPLCNetV2_base_ShiTu": 8, "CLIP_vit": config.Model.patch_size}  # stride of the network, side of a patch
    step, size = steps.get(config.Model.backbone, 1), config.Train.input_size
    if size % step == 0:
        return []
    where = f" ({sources['Train.input_size']})" if "Train.input_size" in sources else ""
    nearest = max(step, round(size / step) * step)
    return [
        f"Train.input_size{where}: {size} is no multiple of {step}, as {config.Model.backbone} needs; use {nearest}"
    ]


def peek(file: str, overrides: list[tuple[str, Any]]) -> dict[str, str]:
    """Global.mode and Global.output as far as they can be told from a faulty configuration."""
    raw: Any = {}
    try:
        path, _ = find_file(file)
        raw, _ = yaml_text.parse(yaml_text.read_text(path), str(path))
    except (ConfigError, OSError, UnicodeDecodeError):
        raw = {}
    for dotted, value in overrides:
        _assign(raw, dotted, value)
    section = raw.get("Global")
    section = section if isinstance(section, dict) else {}
    defaults = Config().Global
    return {
        name: section[name] if isinstance(section.get(name), str) else getattr(defaults, name)
        for name in ("mode", "output")
    }


def without_resume(config: Config) -> Config:
    """The run that a configuration describes, not how this process began it."""
    train = config.Train.model_copy(update={"resume": None, "resume_path": None})
    return config.model_copy(update={"Train": train})


def dump(config: BaseModel) -> str:
    """The whole configuration as YAML, as a run folder keeps it."""
    return yaml_text.dump(config.model_dump(mode="json"))
