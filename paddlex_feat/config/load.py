"""Read a configuration: a file and `-o` assignments become one validated Config, or one error with all problems."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from paddlex_feat.config import auto_recipe
from paddlex_feat.config.aliases import Renamer, current_key
from paddlex_feat.config.base import fits_a_path
from paddlex_feat.config.parts import Problem
from paddlex_feat.config.problems import (
    MAX_PROBLEMS,
    empty,
    listed,
    meant_key,
    null_means,
    short,
    source,
    unusable_paths,
)
from paddlex_feat.config.recipes import RECIPES
from paddlex_feat.config.schema import INPUTS, MODELS, TEXT_KEYS, Config, GlobalSection, walk
from paddlex_feat.config.train_schema import TrainSection
from paddlex_feat.errors import ConfigError
from paddlex_feat.fileio import lookup, safe_yaml
from paddlex_feat.fileio.paths import expand_home, fault

OUTPUT = "Global.output"


def shipped() -> dict[str, Path]:
    """The configuration files that come with the package, by name. Raises ConfigError if there is none."""
    folder = resources.files("paddlex_feat") / "config" / "shipped" / "modules" / "image_feature"
    found = {}
    with suppress(OSError):
        found = {Path(f.name).stem: Path(str(f)) for f in folder.iterdir() if f.name.endswith(".yaml")}
    if not found:
        raise ConfigError(
            "The configuration files that belong to the package are missing.",
            where=str(folder),
            fix="Install paddlex_feat again, or give a YAML file of your own with -c.",
            code="package-files-missing",
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
    name = expand_home(name)
    path = Path(name)
    if os.path.isfile(name):  # noqa: PTH113 - that of pathlib raises for a name that is too long
        return path, None
    files = shipped()
    stem = path.stem if path.suffix in (".yaml", ".yml") else path.name
    if stem in files:
        notice = None if name == stem else f"{name} does not exist here; using the shipped {files[stem]}."
        return files[stem], notice
    near = difflib.get_close_matches(stem, files, 1)
    what = lookup.problem("The configuration file", name, "file")
    raise ConfigError(
        what + (f" Did you mean {near[0]}?" if near and what.endswith("exist.") else ""),
        where=f"-c {name}",
        fix=f"Give a YAML file, or one of the shipped names: {', '.join(sorted(files))}.",
        code="config-missing",
    )


def split_override(text: str) -> tuple[str, Any]:
    """`a.b=value` split at the first `=`; the value is a YAML scalar and never evaluated as code.

    A key that takes text gets it literally (`safe_yaml.parse_text`); a value whose source text a message may
    need is a `safe_yaml.Scalar`. Raises ValueError with the reason.
    """
    name, sign, value = text.partition("=")
    name = name.strip()
    if not sign or not name:
        raise ValueError(f"{short(text)} is not of the form KEY=VALUE")
    if not value.strip() and (current_key(name) in dict(walk()) or name in Config.model_fields):
        return name, safe_yaml.Scalar(None, "")
    if name in TEXT_KEYS or name in INPUTS:
        return name, _text_value(name, value)
    try:
        return name, safe_yaml.parse_scalar(value)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{short(text)}: the value is not valid YAML ({getattr(error, 'problem', error)})") from None


def _text_value(name: str, text: str) -> Any:
    value = safe_yaml.parse_text(text, many=name in INPUTS)
    nothing = value is None or (isinstance(value, safe_yaml.Scalar) and value.value is None)
    if (
        nothing and text.strip() == "~" and not TEXT_KEYS.get(name, False)
    ):  # null means nothing there, so the home folder is meant
        return "~"
    if nothing:
        return None if name in INPUTS else value
    return text if value != text and _exists(text) else value


def _exists(path: str) -> bool:
    try:
        return os.path.lexists(path)
    except (OSError, ValueError):
        return False


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in top.items():
        below = merged.get(name)
        merged[name] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _assign(raw: dict[str, Any], dotted: str, value: Any) -> str | None:
    *sections, last = dotted.split(".")
    if len(sections) > safe_yaml.MAX_DEPTH:
        return f"{short(dotted)}: no key has so many parts"
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            return f"{dotted}: {section} is a value, not a section"
    raw[last] = value
    return None


def _model_of(raw: dict[str, Any]) -> str:
    section = raw.get("Global")
    name = section.get("model") if isinstance(section, dict) else None
    return name if name in MODELS else MODELS[0]


def load(
    file: str,
    overrides: list[tuple[str, Any]],
    usable: bool = True,
    check: Callable[[Config], Sequence[Problem]] | None = None,
) -> tuple[Config, list[str]]:
    """Read, merge and validate.

    Args:
        file: what `-c` gave, a path or a shipped name.
        overrides: (dotted key, value) pairs in the order given; the last one wins. A value may be a
            `safe_yaml.Scalar`, as from `split_override`.
        usable: the paths that the mode uses must be those of this machine; False for the record of another run.
        check: finds problems of a valid configuration that the schema does not know, as `modes.parts.find_problems`.

    Returns the Config and notices for the log. Raises ConfigError that lists every problem.
    """
    path, notice = find_file(file)
    notices = [notice] if notice else []
    try:
        text, encoding = safe_yaml.read_encoded(path)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"The file cannot be read: {getattr(error, 'strerror', None) or error}.",
            where=str(path),
            fix=f"Give UTF-8 text of at most {safe_yaml.MAX_CHARACTERS:,} characters.",
            code="config-unreadable",
        ) from None
    if encoding != "utf-8":
        notices.append(f"{path} is {encoding.upper()} text and was read as such; save it as UTF-8.")
    raw, sources, texts = _parse(text, str(path))
    written = dict(sources)
    in_file = Renamer(str(path), lambda dotted: source(dotted, written))
    raw = _rename(raw, sources, texts, in_file)
    given = Renamer("-o", lambda _: " (-o)")
    overrides = _rename_overrides(overrides, given)
    notices += in_file.notices + given.notices
    notices += _strip_recipe_keys(raw, overrides)
    problems = in_file.problems + given.problems + _override(raw, overrides, sources, texts, given.former)
    more = 0
    merged = _merge(_recipe_of(raw), {k: v for k, v in raw.items() if v is not None})
    try:
        config = Config.model_validate(merged)
    except ValidationError as error:
        rows, more = listed(error, sources, texts)
        problems += rows
    if not problems:
        problems += unusable_paths(config, sources) if usable else []
        problems += _unimplemented(config, sources)
        found = check(config) if check else ()
        problems += [f"{problem.key}{_source_of(problem.key, sources)}: {problem.message}" for problem in found]
    if problems:
        count = "One problem" if len(problems) + more == 1 else f"{len(problems) + more} problems"
        problems += [f"… and {more} more"] if more else []
        raise ConfigError(
            f"{count} in the configuration:\n    " + "\n    ".join(problems),
            where=str(path),
            fix="Correct the keys named; `--help` lists all keys.",
            code=_code(problems),
        )
    return config, notices + _nulls(overrides, config.Global.mode)


def _strip_recipe_keys(raw: dict[str, Any], overrides: list[tuple[str, Any]]) -> list[str]:
    """Where -o asks for Train.recipe=auto, remove its keys from the sections of the file; notices for the log."""
    last = {dotted: value.value if isinstance(value, safe_yaml.Scalar) else value for dotted, value in overrides}
    if last.get(auto_recipe.KEY) != "auto":
        return []
    names = auto_recipe.strip_recipe_keys(raw)
    return [f"{', '.join(names)} in the file: ignored, for -o asks for {auto_recipe.KEY}=auto."] if names else []


def _recipe_of(raw: dict[str, Any]) -> dict[str, Any]:
    """What lies below the keys of the user: the model's recipe, and what Train.recipe=auto sets."""
    recipe = RECIPES[_model_of(raw)]
    if not auto_recipe.wants_recipe(raw):
        return recipe
    usual = TrainSection.model_fields["pretrain_weight_path"].default
    train = {"pretrain_weight_path": usual, **recipe.get("Train", {}), **raw["Train"]}
    return _merge(recipe, auto_recipe.recipe_keys(raw, train["pretrain_weight_path"]))


def _code(problems: list[str]) -> str:
    """Return "unknown-key" if that is all that is wrong, else "invalid-config"."""
    return "unknown-key" if all(": unknown key." in problem for problem in problems) else "invalid-config"


def _parse(text: str, name: str) -> tuple[dict[str, Any], dict[str, str], dict[str, str]]:
    """The sections of a file, file:line of each key, and the text of each scalar; names among the inputs as text."""
    raw, nodes = safe_yaml.parse_nodes(text, name)
    sources = {dotted: f"{name}:{line}" for dotted, (line, _) in nodes.items()}
    texts = {dotted: node.value for dotted, (_, node) in nodes.items() if isinstance(node, yaml.ScalarNode)}
    for dotted in INPUTS:
        if dotted in nodes:
            section, _, last = dotted.partition(".")
            raw[section][last] = safe_yaml.as_written(nodes[dotted][1])
    return raw, sources, texts


def _rename(raw: dict[str, Any], sources: dict[str, str], texts: dict[str, str], renamer: Renamer) -> dict[str, Any]:
    """The sections of a file with the present names of keys and values, in `sources` and `texts` too."""
    renamed = {name: renamer.value(name, section) for name, section in raw.items()}
    for known in (sources, texts):
        for dotted in [name for name in known if current_key(name) != name]:
            known[current_key(dotted)] = known.pop(dotted)
    for dotted, former in renamer.former.items():
        if dotted in sources:
            sources[dotted] += f", as {former}"
    return renamed


def _rename_overrides(overrides: list[tuple[str, Any]], renamer: Renamer) -> list[tuple[str, Any]]:
    """The assignments of -o with the present names of keys and values."""
    renamed = []
    for dotted, value in overrides:
        key = renamer.key(dotted)
        renamed.append((key, renamer.value(key, value)))
    return renamed


def _override(
    raw: dict[str, Any],
    overrides: list[tuple[str, Any]],
    sources: dict[str, str],
    texts: dict[str, str],
    former: Mapping[str, str],
) -> list[str]:
    """Assign what -o gives; return the problems. `former`: key -> the former name under which it was given."""
    sources.update({dotted: f"-o, as {name}" for dotted, name in former.items()})
    problems = []
    for dotted, value in overrides:
        sources[dotted] = f"-o, as {former[dotted]}" if dotted in former else "-o"
        texts.pop(dotted, None)
        if isinstance(value, safe_yaml.Scalar):
            texts[dotted] = value.text
            if not value.text:
                problems.append(f"{dotted}{source(dotted, sources)}: {empty(dotted)}")
                continue
            value = value.value
        wrong = _assign(raw, dotted, copy.deepcopy(value))
        problems += [wrong] if wrong else []
    return problems


def _nulls(overrides: list[tuple[str, Any]], mode: str) -> list[str]:
    """What null does, for each key that -o sets to null, except those that the mode itself logs."""
    last = {dotted: value.value if isinstance(value, safe_yaml.Scalar) else value for dotted, value in overrides}
    return [
        f"{dotted} is null: {null_means(dotted)}."
        for dotted, value in last.items()
        if value is None and dotted.lower().startswith(f"{mode}.") and dotted not in TEXT_KEYS and null_means(dotted)
    ]


def _unimplemented(config: Config, sources: dict[str, str]) -> list[str]:
    """Keys of existing files whose function is not implemented, in the mode that would use them."""
    if config.Global.mode == "train" and config.Train.basic_config_path:
        where = source("Train.basic_config_path", sources)
        return [f"Train.basic_config_path{where}: recipe files are not implemented; leave the key out"]
    return []


def _source_of(dotted: str, sources: dict[str, str]) -> str:
    """As `source`, of the key itself or of the mapping or list that holds it."""
    while dotted and dotted not in sources:
        dotted = dotted.rpartition(".")[0]
    return source(dotted, sources)


def peek(file: str, overrides: list[tuple[str, Any]]) -> dict[str, str]:
    """Global.mode and Global.output as far as they can be told from a faulty configuration.

    The output is "" if it is faulty, if a misspelt key was probably meant for it, or if the file that may
    name it cannot be read.
    """
    raw: Any = {}
    unnamed = ""
    with suppress(ConfigError, OSError, UnicodeDecodeError):
        raw, _, _ = _parse(safe_yaml.read_text(find_file(file)[0]), file)
        unnamed = Config().Global.output
    sources: dict[str, str] = {}
    problems = _override(raw, overrides, sources, {}, {})
    sources = {current_key(name): where for name, where in sources.items()}
    section = raw.get("Global")
    if not isinstance(section, dict):
        section, unnamed = {}, unnamed if section is None else ""
    deproblems = Config().Global
    mode, output = section.get("mode", deproblems.mode), section.get("output", unnamed)
    names = [f"Global.{name}" for name in section if name not in GlobalSection.model_fields] + list(sources)
    known = dict(walk())
    misspelt = any(meant_key(str(name)) == OUTPUT for name in names[:MAX_PROBLEMS] if name not in known)
    sound = isinstance(output, str) and output.strip() and not any(f.startswith(OUTPUT) for f in problems)
    output = expand_home(output) if sound else ""
    return {
        "mode": mode if isinstance(mode, str) else deproblems.mode,
        "output": "" if misspelt or not fits_a_path(output) or fault(output, written=True) else output,
    }


def without_resume(config: Config) -> Config:
    """The run that a configuration describes, not how this process began it."""
    train = config.Train.model_copy(update={"resume": None, "resume_path": None})
    return config.model_copy(update={"Train": train})


def dump(config: BaseModel) -> str:
    """The whole configuration as YAML, as a run folder keeps it."""
    return safe_yaml.dump(config.model_dump(mode="json"))
