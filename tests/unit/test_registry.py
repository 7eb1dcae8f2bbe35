"""Registries: built-in entries, entries of other packages, and what is wrong with a name."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from paddlex_feat.config.registry import Registry
from paddlex_feat.errors import ConfigError, DependencyError


@dataclass(frozen=True)
class Tool:
    name: str


@pytest.fixture
def tools() -> Registry[Tool]:
    registry = Registry("tools", Tool, "Train.tool")
    registry.add(Tool("hammer"))
    return registry


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A package of somebody else, installed: its module's source is given."""

    def install(source: str) -> None:
        (tmp_path / "other_tools.py").write_text(source)
        info = tmp_path / "other_tools-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: other_tools\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text("[paddlex_feat.tools]\nsaw = other_tools:SAW\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "other_tools", raising=False)

    return install


def test_an_unknown_name_lists_the_known_ones(tools):
    with pytest.raises(ConfigError, match="Did you mean hammer") as caught:
        tools.get("hamer")
    assert (caught.value.code, caught.value.where) == ("unknown-name", "Train.tool")


def test_a_name_is_taken_once(tools):
    with pytest.raises(ValueError, match="already"):
        tools.add(Tool("hammer"))


def test_another_package_adds_an_entry(tools, plugin):
    plugin(f"from {__name__} import Tool\nSAW = Tool('saw')\n")
    assert tools.names() == ["hammer", "saw"] and "other_tools" not in sys.modules
    assert [t.name for t in tools] == ["hammer", "saw"]


@pytest.mark.parametrize(
    ("source", "code"), [("1 / 0", "plugin-broken"), ("SAW = 3", "plugin-invalid"), ("", "plugin-broken")]
)
def test_a_faulty_package_is_named(tools, plugin, source, code):
    plugin(source)
    with pytest.raises(DependencyError, match="other_tools") as caught:
        tools.get("saw")
    assert caught.value.code == code
