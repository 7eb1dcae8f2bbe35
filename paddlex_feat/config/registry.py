"""Registries: named things of one kind, which other packages can add to."""

from __future__ import annotations

import difflib
import functools
import logging
import sys
from collections.abc import Iterator
from importlib import metadata
from typing import Generic, Protocol, TypeVar

from paddlex_feat.errors import ConfigError, DependencyError

log = logging.getLogger(__name__)


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
        self._loaded: set[str] = set()  # names of those entries that come from entry points
        self._added_by: dict[str, str] = {}  # name -> module that called add
        self._compared: set[str] = set()  # names whose sources have been looked at

    def add(self, entry: E) -> E:
        """Add an entry and return it. It takes precedence over an entry point of its name.

        Raises TypeError for what is not an entry, ValueError if the name of a built-in or added entry is taken.
        """
        if not isinstance(entry, self._type):
            raise TypeError(f"an entry of {self.kind} is a {self._type.__name__}, not {entry!r}")
        if entry.name in self._entries and entry.name not in self._loaded:
            raise ValueError(f"{self.kind} has an entry {entry.name!r} already")
        self._entries[entry.name] = entry
        self._loaded.discard(entry.name)
        self._compared.discard(entry.name)
        self._added_by[entry.name] = sys._getframe(1).f_globals.get("__name__", "")
        return entry

    def names(self) -> list[str]:
        """Names of all entries; those of entry points are not imported for it."""
        points = entry_points(self.group)
        for name in dict.fromkeys(point.name for point in points):
            self._compare_sources(name, [point for point in points if point.name == name])
        return list(dict.fromkeys([*self._entries, *(point.name for point in points)]))

    def added(self) -> list[E]:
        """The entries that are built in or were added, without those of entry points."""
        return [entry for name, entry in self._entries.items() if name not in self._loaded]

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[E]:
        return (self.get(name, self.group) for name in self.names())

    def get(self, name: str, where: str | None = None) -> E:
        """The entry of this name.

        Args:
            name: of an entry that was added, or of an entry point of the group.
            where: the place that names it, for errors; None: the registry's key.

        Raises ConfigError for an unknown name, DependencyError if the package that provides it cannot be imported.
        """
        if name not in self._compared:
            self._compare_sources(name, list(entry_points(self.group).select(name=name)))
        if name not in self._entries:
            self._entries[name] = self._load(name, where or self._key)
            self._loaded.add(name)
        return self._entries[name]

    def _compare_sources(self, name: str, points: list[metadata.EntryPoint]) -> None:
        """Log, once, that a name has several sources."""
        if name in self._compared:
            return
        self._compared.add(name)
        sources = list(dict.fromkeys(map(_source, points)))
        if name in self._entries and name not in self._loaded:
            module = self._added_by.get(name, "")
            sources.insert(0, module if module.startswith("paddlex_feat.") else f"Registry.add in {module}")
        if len(sources) > 1:
            text = "%s has several entries %r, from %s; that of %s is used."
            log.warning(text, self.kind, name, " and ".join(sources), sources[0])

    def _load(self, name: str, where: str) -> E:
        points = entry_points(self.group).select(name=name)
        if not points:
            raise ConfigError(
                f"There is no {name!r} among the {self.kind}.{did_you_mean(name, self.names())}",
                where=where,
                fix=f"Use one of {', '.join(self.names())}.",
                code="unknown-name",
            )
        point = next(iter(points))
        source = _source(point)
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


def entry_points(group: str) -> metadata.EntryPoints:
    """What the installed packages add to a group, in the order of `sys.path`."""
    return _installed(group, tuple(sys.path))


@functools.cache  # each search reads a file of every installed package
def _installed(group: str, path: tuple[str, ...]) -> metadata.EntryPoints:
    return metadata.entry_points(group=group)


def _source(point: metadata.EntryPoint) -> str:
    """The package that an entry point belongs to."""
    return point.dist.name if point.dist else point.value


def did_you_mean(name: str, known: list[str]) -> str:
    """A sentence, after a space, that names the most similar of the known names; empty if none is similar."""
    by_lower = {k.lower(): k for k in known}
    near = [by_lower[k] for k in difflib.get_close_matches(name.lower(), by_lower, n=3)]
    return f" Did you mean {' or '.join(near)}?" if near else ""
