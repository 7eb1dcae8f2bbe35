"""The house: imports run downward, files and functions stay readable, docs/architecture.md is true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import ROOT

PACKAGE = ROOT / "paddlex_feat"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(PACKAGE.rglob("*.py"))


def package_of(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(file: Path) -> list[str]:
    """Every module that a file imports, at its top or inside a function."""
    names: list[str] = []
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def table() -> dict[str, tuple[set[str], bool]]:
    """The page's table: package -> (what it may import, may it import Paddle?), top floor first."""
    cells = [[c.strip() for c in line.split("|")] for line in PAGE.splitlines() if line.startswith("| `")]
    return {
        row[1].strip("`"): (set(re.findall(r"`(\w+)`", row[2])), row[3] == "paddle") for row in cells if len(row) == 5
    }


def test_the_table_names_every_package_and_runs_downward():
    rows = table()
    assert set(rows) == {package_of(f) for f in FILES} - {"__init__"}
    floors = list(rows)
    for name, (allowed, _) in rows.items():
        assert all(floors.index(a) > floors.index(name) for a in allowed), name


@pytest.mark.parametrize("file", FILES, ids=lambda f: str(f.relative_to(PACKAGE)))
def test_imports_are_those_of_the_table(file):
    own = package_of(file)
    if own == "__init__":
        return
    allowed, paddle = table()[own]
    for name in imports(file):
        top, *rest = name.split(".")
        if top == "paddlex_feat" and rest not in (["__version__"], ["MOST_PIXELS"], ["OPENCV_CAME_FIRST"]):
            assert rest[0] in allowed | {own}, f"{file.relative_to(ROOT)} imports {name}"
        assert paddle or top != "paddle", f"{file.relative_to(ROOT)} imports {name}"


def test_every_allowed_import_is_used():
    """A line of the table that nothing needs would let the house decay."""
    used: dict[str, set[str]] = {}
    for file in FILES:
        for name in imports(file):
            if name.startswith("paddlex_feat."):
                used.setdefault(package_of(file), set()).add(name.split(".")[1])
    used["cli"].add("modes")  # by name, so that --help does not import them
    for name, (allowed, _) in table().items():
        assert allowed <= used.get(name, set()), name


def test_the_page_finds_every_file():
    named = set(re.findall(r"`([\w/]+\.py)`", PAGE.partition("Where is")[2]))
    files = {str(f.relative_to(PACKAGE)) for f in FILES if f.name != "__init__.py"}
    searched = {f for f in files if f != "cli.py" and not re.match(r"modes/(?!common)", f)}
    assert named - {"modes/train_parts.py"} == searched


def test_files_and_functions_stay_readable():
    for file in FILES:
        text = file.read_text(encoding="utf-8")
        assert text.count("\n") <= 320, file
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 60, f"{file}: {node.name}"


def test_public_names_have_docstrings():
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{file}: {node.name}"


def test_prediction_imports_nothing_of_training():
    code = "import sys, paddlex_feat.inference.predictor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "paddlex_feat.inference.engines.paddle_engine" in loaded
    assert not loaded & {"paddle", "paddlex_feat.models", "paddlex_feat.training", "paddlex_feat.losses"}
