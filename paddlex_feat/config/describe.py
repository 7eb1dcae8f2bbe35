"""The schema in words: for `--help` and for the generated documentation."""

from __future__ import annotations

import textwrap
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from paddlex_feat.config.schema import walk


class KeyRow(NamedTuple):
    """One configuration key as strings."""

    name: str
    type: str
    default: str
    unit: str
    meaning: str


def _type_name(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        return _type_name(get_args(annotation)[0])
    if origin is Literal:
        return ", ".join(map(str, get_args(annotation)))
    if origin in (Union, UnionType):
        return " or ".join(_type_name(a) for a in get_args(annotation))
    if origin in (list, tuple):
        return f"list of {'two numbers' if origin is tuple else _type_name(get_args(annotation)[0])}"
    names = {NoneType: "null", Any: "any", str: "text", int: "integer", float: "number", bool: "True, False"}
    return names.get(annotation) or ("mapping" if origin is dict else str(annotation))


def describe_keys() -> list[KeyRow]:
    """Every configuration key, in the schema's order."""
    rows = []
    for name, info in walk():
        extra = info.json_schema_extra or {}
        default = "null" if info.default is None else str(info.default)
        values = extra.get("values") or _type_name(info.annotation)
        rows.append(KeyRow(name, values, default, extra.get("unit", ""), info.description))
    return rows


def keys_help() -> str:
    """The list of keys as `--help` shows it."""
    lines = ["configuration keys, for -o or the YAML file: key [default] (unit) type, then what it means", ""]
    for row in describe_keys():
        unit = f" ({row.unit})" if row.unit else ""
        lines.append(f"  {row.name} [{row.default}]{unit} {row.type}")
        lines += textwrap.wrap(row.meaning, 96, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)
