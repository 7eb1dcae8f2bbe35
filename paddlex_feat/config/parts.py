"""What entries of registries share: builders that are imported when they are needed, and keys of their own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from pydantic import ValidationError

from paddlex_feat.config.base import Section
from paddlex_feat.config.registry import did_you_mean
from paddlex_feat.errors import DependencyError

# A callable, or "module:name" of one in a module that imports Paddle.
Builder = Callable[..., Any] | str
_MAX_SHOWN = 200  # characters of a value in a message


class Problem(NamedTuple):
    """What is wrong with the value of a configuration key."""

    key: str
    message: str


class NoParams(Section):
    """The keys of an entry that has none."""


def imported(builder: Builder) -> Callable[..., Any]:
    """Return the callable that a builder names.

    Raises:
        DependencyError: its module cannot be imported or does not hold the name.
    """
    if not isinstance(builder, str):
        return builder
    module, _, name = builder.partition(":")
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(module), name)
        return found
    except (ImportError, AttributeError) as error:
        raise DependencyError(
            f"{builder} cannot be imported ({error}).",
            where=module,
            fix=f"Repair the package {module.partition('.')[0]}.",
            code="builder-missing",
        ) from error


def read_params(section: type[Section], values: Mapping[str, Any], where: str) -> tuple[Section | None, list[Problem]]:
    """Validate the own keys of an entry.

    Args:
        section: its keys, with defaults.
        values: what the configuration sets.
        where: dotted name of the mapping that holds them.

    Returns:
        The section, None if there are problems, and the problems.
    """
    try:
        return section.model_validate(dict(values)), []
    except ValidationError as error:
        return None, [_problem(section, where, item) for item in error.errors()]


def _problem(section: type[Section], where: str, item: Any) -> Problem:
    key = ".".join([where, *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        return Problem(key, f"unknown key.{did_you_mean(str(item['loc'][-1]), list(section.model_fields))}")
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return Problem(key, "a value is needed")
    shown = repr(item["input"])
    return Problem(key, f"{message}, got {shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + '…'}")
