"""Registries: named things of one kind, which other packages can add to."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from importlib import metadata
from typing import Generic, Protocol, TypeVar

from paddlex_feat.errors import ConfigError, DependencyError


class Entry(Protocol):
    """What every registry asks of its entries."""

    @property
    def name(self) -> str:
        """The name that configurations use."""
        ...


E = TypeVar("E", bound=Entry)


class Registry(Generic[E]):
    """Entries of one kind by name, in the order in which they were added.

    Built-in entries are added where the registry is made. An installed package adds one by an entry point of the group
    `paddlex_feat.<kind>`, which names an object of the entry's class; it is imported when it is first asked for, in
    every process of a run. `add` reaches this process alone.

    Args:
        kind: plural noun, such as "losses".
        entry_type: class of the entries.
        key: configuration key that names an entry, for error messages.
    """

    def __init__(self, kind: str, entry_type: type[E], key: str):
        self.kind = kind
        self.group = f"paddlex_feat.{kind}"
        self._type = entry_type
        self._key = key
        self._entries: dict[str, E] = {}

    def add(self, entry: E) -> E:
        """Add an entry and return it. Raises ValueError if its name is taken."""
        if entry.name in self._entries:
            raise ValueError(f"{self.kind} has an entry {entry.name!r} already")
        self._entries[entry.name] = entry
        return entry

    def names(self) -> list[str]:
        """Names of all entries; those of entry points are not imported for it."""
        return list(dict.fromkeys([*self._entries, *(point.name for point in metadata.entry_points(group=self.group))]))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[E]:
        return (self.get(name) for name in self.names())

    def get(self, name: str, where: str | None = None) -> E:
        """The entry of this name.

        Args:
            name: of an entry that was added, or of an entry point of the group.
            where: the place that names it, for errors; None: the registry's key.

        Raises ConfigError for an unknown name, DependencyError if the package that provides it cannot be imported.
        """
        if name not in self._entries:
            self._entries[name] = self._load(name, where or self._key)
        return self._entries[name]

    def _load(self, name: str, where: str) -> E:
        points = metadata.entry_points(group=self.group, name=name)
        if not points:
            raise ConfigError(
                f"There is no {name!r} among the {self.kind}.{did_you_mean(name, self.names())}",
                where=where,
                fix=f"Use one of {', '.join(self.names())}.",
                code="unknown-name",
            )
        point = next(iter(points))
        source = point.dist.name if point.dist else point.value
        try:
            entry = point.load()
        except Exception as error:
            raise DependencyError(
                f"{name!r} of the package {source} cannot be imported ({type(error).__name__}: {error}).",
                where=where,
                fix=f"Repair or uninstall {source}.",
                code="plugin-broken",
            ) from error
        if not isinstance(entry, self._type) or entry.name != name:
            raise DependencyError(
                f"The entry point {name!r} of {source} is not a {self._type.__name__} of this name.",
                where=where,
                fix=f"Correct the entry point {self.group} of {source}.",
                code="plugin-invalid",
            )
        return entry


def did_you_mean(name: str, known: list[str]) -> str:
    """A sentence, after a space, that names the most similar of the known names; empty if none is similar."""
    by_lower = {k.lower(): k for k in known}
    near = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    return f" Did you mean {' or '.join(near)}?" if near else ""
