"""What entries of registries share: builders that are imported when they are needed, and keys of their own."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from pydantic import ValidationError

from paddlex_feat.config.base import Section
from paddlex_feat.config.registry import did_you_mean
from paddlex_feat.errors import DependencyError, FeatError, out_of_memory

if TYPE_CHECKING:
    import numpy as np

# A callable, or "module:name" of one in a module that imports Paddle.
Builder = Callable[..., Any] | str
_OWN = __name__.partition(".")[0]
_MAX_SHOWN = 200  # characters of a value in a message


T = TypeVar("T")


class Problem(NamedTuple):
    """What is wrong with the value of a configuration key."""

    key: str
    message: str


class NoParams(Section):
    """The keys of an entry that has none."""


@runtime_checkable
class HasClassVectors(Protocol):
    """A layer, head or loss, with a vector for each class that can be started at the class's mean feature."""

    def set_class_means(self, means: np.ndarray) -> None:
        """Start the vectors at `means`, float32 [C, D] with rows of length 1.

        A row of zeros, of a class without images, leaves that vector as it is.
        """


@runtime_checkable
class GivesClassVectors(Protocol):
    """A layer, head or loss, whose class vectors tell which classes it finds alike."""

    def class_vectors(self) -> np.ndarray:
        """The vectors of any length, float32 [C, K, D], K of each class; of classes alike have a great cosine."""


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


def build_part(kind: str, name: str, builder: Builder, expected: type[T], *args: Any) -> T:
    """Call a builder, and check what it returns.

    Args:
        kind: noun, such as "loss", for messages.
        name: of the entry whose builder it is.
        builder: of this package or of another.
        expected: class of what it must return.
        args: of the builder.

    Raises:
        DependencyError: the builder cannot be imported, fails though it belongs to another package, or returns
            something else. FeatErrors and a lack of memory pass as they are.
    """
    build = imported(builder)
    module = builder if isinstance(builder, str) else str(getattr(builder, "__module__", ""))
    try:
        part = build(*args)
    except FeatError:
        raise
    except Exception as error:
        if module.partition(":")[0].partition(".")[0] == _OWN or out_of_memory(error, name, ""):
            raise
        raise broken_part(kind, name, f"cannot be built ({type(error).__name__}: {error})", module) from error
    if not isinstance(part, expected):
        kind_of = f"{expected.__module__.partition('.')[0]} {expected.__name__}"
        raise broken_part(kind, name, f"cannot be used: its builder returns {_shown(part)}, not a {kind_of}", module)
    return part


def broken_part(kind: str, name: str, what: str, where: str) -> DependencyError:
    """The error of a part of another package.

    Args:
        kind: noun, such as "loss".
        name: of the part.
        what: predicate that says what is wrong.
        where: module of its code.
    """
    return DependencyError(
        f"The {kind} {name!r} {what}.",
        where=where or None,
        fix=f"Correct the {kind} {name!r}, or choose another.",
        code="plugin-broken",
    )


def _shown(value: Any) -> str:
    """A value in a message."""
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else shown[:_MAX_SHOWN] + "…"


def read_params(
    section: type[Section], values: Mapping[str, Any], where: str, others: Iterable[str] = ()
) -> tuple[Section | None, list[Problem]]:
    """Validate the own keys of an entry.

    Args:
        section: its keys, with defaults.
        values: what the configuration sets.
        where: dotted name of the mapping that holds them.
        others: names of keys that the mapping may hold as well, which may have been meant by an unknown one.

    Returns:
        The section, None if there are problems, and the problems.
    """
    try:
        return section.model_validate(dict(values)), []
    except ValidationError as error:
        return None, [_problem([*section.model_fields, *others], where, item) for item in error.errors()]


def _problem(known: list[str], where: str, item: Any) -> Problem:
    key = ".".join([where, *map(str, item["loc"])])
    if item["type"] == "extra_forbidden":
        return Problem(key, f"unknown key.{did_you_mean(str(item['loc'][-1]), known)}")
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "missing":
        return Problem(key, "a value is needed")
    return Problem(key, f"{message}, got {_shown(item['input'])}")
