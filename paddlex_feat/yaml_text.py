"""YAML as people write it: safe, every key with its line, no surprising scalars."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from paddlex_feat.errors import ConfigError
from paddlex_feat.reading import read_small

MOST_NODES, DEEPEST = 10_000, 50
MOST_CHARACTERS = 400_000  # the loader is slow: of a longer text it could take minutes


class _Loader(yaml.SafeLoader):
    """Safe loader that reads 1e-3 as a number, None as null, and no date or base-60 integer."""


_ADMITTED = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")}
_KEPT = {"tag:yaml.org,2002:null", "tag:yaml.org,2002:bool", "tag:yaml.org,2002:merge"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"^None$"), ["N"])
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?[0-9][0-9_]*$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?$"),
    list("-+.0123456789"),
)


def _int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)).replace("_", ""))


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(str(loader.construct_scalar(node)))


_Loader.add_constructor("tag:yaml.org,2002:int", _int)
_Loader.add_constructor("tag:yaml.org,2002:float", _float)


def read_text(path: Path) -> str:
    """The text of a YAML file. Raises OSError, also for a file too long to be parsed, or UnicodeDecodeError."""
    return read_small(path, 4 * MOST_CHARACTERS).decode("utf-8-sig")  # a character has at most 4 bytes


def read(text: str) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and its nodes; aliases may not refer to themselves or multiply without measure.

    Raises yaml.YAMLError, ValueError or RecursionError.
    """
    if len(text) > MOST_CHARACTERS:
        raise ValueError(f"more than {MOST_CHARACTERS} characters")
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None, None
        _size(node, {}, set())
        return loader.construct_document(node), node
    except KeyError as error:  # of PyYAML, for `!!bool maybe`
        raise ValueError(f"{error} is not what its tag says") from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int], open_nodes: set[int]) -> int:
    """Number of nodes below `node` when every alias is written out."""
    if id(node) in open_nodes:
        raise ValueError("an alias refers to itself")
    if len(open_nodes) > DEEPEST:  # Python prints and copies what is nested by recursion
        raise ValueError(f"more than {DEEPEST} levels")
    if node.tag not in _ADMITTED:
        raise ValueError(f"the tag {node.tag} is not known")
    if id(node) not in known:
        open_nodes.add(id(node))
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_size(part, known, open_nodes) for part in parts)
        open_nodes.discard(id(node))
        if known[id(node)] > MOST_NODES:
            raise ValueError(f"more than {MOST_NODES} values")
    return known[id(node)]


def parse_scalar(text: str) -> Any:
    """The value of an `-o key=value`; a flow list or mapping is allowed too.

    A " #" in a plain value belongs to it: a file name, not a comment.
    """
    if " #" in text and text.lstrip()[:1] not in ("'", '"', "[", "{"):
        return text
    return read(text)[0]


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML mapping and the line of each dotted key. Raises ConfigError with file:line."""
    try:
        value, node = read(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(
            f"Not valid YAML: {getattr(error, 'problem', None) or error}.",
            where=f"{name}:{mark.line + 1}" if mark else name,
            fix="Correct that line." if mark else "Leave out what is no key of this program; `--help` lists all keys.",
        ) from error
    if value is None:
        return {}, {}
    if not isinstance(value, dict) or not isinstance(node, yaml.MappingNode):
        raise ConfigError("The file holds no sections.", where=name, fix="Start with `Global:` and indented keys.")
    lines: dict[str, int] = {}
    _collect_lines(node, "", name, lines)
    return value, lines


def _collect_lines(node: yaml.MappingNode, prefix: str, name: str, lines: dict[str, int]) -> None:
    for key, value in node.value:
        dotted, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if dotted in lines:
            raise ConfigError(
                f"{dotted} is given twice, in lines {lines[dotted]} and {line}.",
                where=f"{name}:{line}",
                fix="Remove one of them.",
            )
        lines[dotted] = line
        if isinstance(value, yaml.MappingNode):
            _collect_lines(value, f"{dotted}.", name, lines)


def dump(value: dict[str, Any]) -> str:
    """YAML text in the given key order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
