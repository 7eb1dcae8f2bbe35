"""YAML as people write it: safe, every key with its line, no surprising scalars."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from paddlex_feat.errors import ConfigError
from paddlex_feat.fileio.reading import decode_text, read_small

MAX_NODES, MAX_DEPTH = 10_000, 50
_TOO_MANY = f"more than {MAX_NODES} values"
MAX_CHARACTERS = 400_000  # the loader is slow: of a longer text it could take minutes


class _Loader(yaml.SafeLoader):
    """Safe loader of at most MAX_NODES values; 1e-3 is a number, None is null, nothing is a date or base-60."""

    _composed = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._composed += 1
        if self._composed > MAX_NODES:  # at once: the parser takes seconds for the rest of a long text
            raise ValueError(_TOO_MANY)
        return super().compose_node(parent, index)


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


class _TextLoader(_Loader):
    """Gives every scalar but null as it is written: 0123 is '0123', on is 'on'."""


def _written(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> str:
    return str(loader.construct_scalar(node))


for _name in ("bool", "int", "float"):
    _TextLoader.add_constructor(f"tag:yaml.org,2002:{_name}", _written)


class Scalar(NamedTuple):
    """A value that YAML does not read as text, with its source text."""

    value: Any
    text: str


def read_text(path: Path) -> str:
    """The text of a YAML file. Raises OSError, also for a file too long to be parsed, or UnicodeDecodeError."""
    return read_encoded(path)[0]


def read_encoded(path: Path) -> tuple[str, str]:
    """As `read_text`, with the encoding: "utf-8", or what `reading.decode_text` recognised."""
    return decode_text(read_small(path, 4 * MAX_CHARACTERS))  # a character has at most 4 bytes


def read(text: str, loader_type: type[_Loader] = _Loader) -> tuple[Any, yaml.Node | None]:
    """The value of a YAML text, and its nodes; aliases may not refer to themselves or multiply without measure.

    Raises yaml.YAMLError, ValueError or RecursionError.
    """
    if len(text) > MAX_CHARACTERS:
        raise ValueError(f"more than {MAX_CHARACTERS} characters")
    loader = loader_type(text)
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
    if len(open_nodes) > MAX_DEPTH:  # Python prints and copies what is nested by recursion
        raise ValueError(f"more than {MAX_DEPTH} levels")
    if node.tag not in _ADMITTED:
        raise ValueError(f"the tag {node.tag} is not known")
    if id(node) not in known:
        open_nodes.add(id(node))
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for child in children for part in (child if isinstance(child, tuple) else (child,))]
        known[id(node)] = 1 + sum(_size(part, known, open_nodes) for part in parts)
        open_nodes.discard(id(node))
        if known[id(node)] > MAX_NODES:
            raise ValueError(_TOO_MANY)
    return known[id(node)]


def parse_scalar(text: str) -> Any:
    """The value of an `-o key=value`; a flow list or mapping is allowed too.

    A " #" in a plain value belongs to it: a file name, not a comment.
    """
    if " #" in text and text.lstrip()[:1] not in ("'", '"', "[", "{"):
        return text
    return read(text)[0]


def parse_text(text: str, many: bool = False) -> Any:
    """The value of an `-o key=value` for a key that takes text: the text itself, without YAML's quotes around it.

    No name may turn into another one, so comments, anchors, tags, block lists and invalid YAML are literal text.
    The result is a Scalar for null, a number or a truth value.

    Args:
        text: what follows the equals sign.
        many: the key takes lists and mappings too, whose scalars are text as well.
    """
    if text.strip() in _NULLS:
        return Scalar(None, text.strip())
    try:
        value, node = _read_names(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        return text
    if isinstance(node, yaml.CollectionNode):
        block = not node.flow_style and "\n" not in text and not (isinstance(value, dict) and "img" in value)
        return value if many and not block else text
    if not isinstance(node, yaml.ScalarNode) or node.value is None:
        return text
    bare = text.strip()
    quoted = node.style in ("'", '"') and bare[:1] == node.style == bare[-1:]
    if not (quoted or bare == node.value or bare.startswith("!!") or node.style in ("|", ">")):
        return text  # a comment, an anchor or the start of a document was taken off
    try:
        plain = _construct(node, _Loader)
    except (ValueError, KeyError):  # `!!int x`, `!!bool maybe`
        return text
    return value if many or isinstance(plain, str) else Scalar(plain, bare)


_NULLS = ("null", "Null", "NULL", "None")  # "~" is a home folder where text is wanted
_PRIVATE = 0x10FE00  # private code points that replace undecodable bytes, which YAML refuses


def _read_names(text: str) -> tuple[Any, yaml.Node | None]:
    """As `read` with every scalar but null as text, for names with bytes that are not UTF-8 (surrogateescape)."""
    escaped = {code: code - 0xDC00 + _PRIVATE for code in range(0xDC80, 0xDD00)}
    value, node = read(text.translate(escaped), _TextLoader)
    if isinstance(node, yaml.ScalarNode):
        node.value = _restored(node.value)
    return _restored(value), node


def _restored(value: Any) -> Any:
    if isinstance(value, str):
        return re.sub(
            f"[{chr(_PRIVATE + 0x80)}-{chr(_PRIVATE + 0xFF)}]", lambda c: chr(ord(c[0]) - _PRIVATE + 0xDC00), value
        )
    if isinstance(value, list):
        return [_restored(part) for part in value]
    if isinstance(value, dict):
        return {_restored(key): _restored(part) for key, part in value.items()}
    return value


def as_written(node: yaml.Node) -> Any:
    """The value of a node of `parse_nodes` with every scalar but null as text."""
    return _construct(node, _TextLoader)


def _construct(node: yaml.Node, loader_type: type[_Loader]) -> Any:
    loader = loader_type("")
    try:
        return loader.construct_document(node)
    finally:
        loader.dispose()


def parse(text: str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """A YAML mapping and the line of each dotted key. Raises ConfigError with file:line."""
    value, nodes = parse_nodes(text, name)
    return value, {dotted: line for dotted, (line, _) in nodes.items()}


def parse_nodes(text: str, name: str) -> tuple[dict[str, Any], dict[str, tuple[int, yaml.Node]]]:
    """A YAML mapping, and the line and the value's node of each dotted key. Raises ConfigError with file:line."""
    try:
        value, node = read(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(
            f"Not valid YAML: {getattr(error, 'problem', None) or error}.",
            where=f"{name}:{mark.line + 1}" if mark else name,
            fix="Correct that line." if mark else "Leave out what is no key of this program; `--help` lists all keys.",
            code="yaml-invalid",
        ) from error
    if value is None:
        return {}, {}
    if not isinstance(value, dict) or not isinstance(node, yaml.MappingNode):
        fix = "Start with `Global:` and indented keys."
        raise ConfigError("The file holds no sections.", where=name, fix=fix, code="no-sections")
    nodes: dict[str, tuple[int, yaml.Node]] = {}
    _collect_nodes(node, "", name, nodes)
    return value, nodes


def _collect_nodes(node: yaml.MappingNode, prefix: str, name: str, nodes: dict[str, tuple[int, yaml.Node]]) -> None:
    for key, value in node.value:
        dotted, line = f"{prefix}{key.value}", key.start_mark.line + 1
        if dotted in nodes:
            raise ConfigError(
                f"{dotted} is given twice, in lines {nodes[dotted][0]} and {line}.",
                where=f"{name}:{line}",
                fix="Remove one of them.",
                code="key-twice",
            )
        nodes[dotted] = (line, value)
        if isinstance(value, yaml.MappingNode):
            _collect_nodes(value, f"{dotted}.", name, nodes)


def dump(value: dict[str, Any]) -> str:
    """YAML text in the given key order."""
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=None, width=100)
