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

    def install(source: str, package: str = "other_tools") -> None:
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[paddlex_feat.tools]\nsaw = {package}:SAW\n")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, package, raising=False)

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


def test_what_is_not_an_entry_is_refused(tools):
    with pytest.raises(TypeError, match="an entry of tools is a Tool, not 'saw'"):
        tools.add("saw")


@pytest.mark.parametrize("looked_up", [False, True])
def test_an_added_entry_precedes_an_entry_point_with_one_warning(tools, plugin, caplog, looked_up):
    plugin(f"from {__name__} import Tool\nSAW = Tool('saw')\n")
    if looked_up:
        tools.get("saw")
    own = tools.add(Tool("saw"))
    assert tools.get("saw") is own and tools.names() == ["hammer", "saw"] and list(tools)[1] is own
    assert tools.added() == [Tool("hammer"), own]
    with pytest.raises(ValueError, match="already"):
        tools.add(Tool("saw"))
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and f"Registry.add in {__name__} and other_tools" in said[0]


def test_two_packages_with_the_same_name_are_warned_of_once(tools, plugin, caplog):
    for package in ("other_tools", "more_tools"):
        plugin(f"from {__name__} import Tool\nSAW = Tool('saw')\n", package)
    for _ in range(2):
        assert tools.get("saw") == Tool("saw") and tools.names() == ["hammer", "saw"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1 and "other_tools" in said[0] and "more_tools" in said[0]
