"""Commands that the pages name: each file is there, and each -k selects a test. Nothing is run or collected."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from support.runs import ROOT

PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted(ROOT.glob("README*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def commands(text: str) -> list[list[str]]:
    """The words of every `pytest …` and `bash run test …` in a page, its abbreviation `F` written out."""
    text = text.replace("\n", " ")
    meaning = re.search(r"`F` is `(pytest [^`]*)`", text)
    found = re.findall(r"`((?:pytest|bash run test|F) [^`]*)`", text)
    written = [re.sub(r"^F ", f"{meaning[1]} " if meaning else "F ", command) for command in found]
    return [shlex.split(command) for command in written]


@cache
def selectable(file: Path, markers: str) -> tuple[str, ...]:
    """What -k looks at, of each test of a file that -m admits: its name and the source of its decorators' values."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    constants = {
        target.id: ast.unparse(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    tests = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            marks = [constants.get("pytestmark", ""), *map(ast.unparse, node.decorator_list)]
            slow = any(re.match(r"pytest\.mark\.(slow|nightly)$", mark) for mark in marks)
            mixed = any("marks=pytest.mark.slow" in mark for mark in marks)
            if not mixed and markers in ("slow", "not slow") and slow != (markers == "slow"):
                continue
            words = [node.name]
            for decorator in node.decorator_list:
                words.append(ast.unparse(decorator))
                words += [constants.get(n.id, "") for n in ast.walk(decorator) if isinstance(n, ast.Name)]
            tests.append(" ".join(words).lower())
    return tuple(tests)


def unselected(expression: str, tests: list[str]) -> list[str]:
    """Which parts of a -k expression, or the whole of it, select none of the tests."""

    def selects(node: ast.expr, test: str) -> bool:
        if isinstance(node, ast.BoolOp):
            return (any if isinstance(node.op, ast.Or) else all)(selects(value, test) for value in node.values)
        if isinstance(node, ast.UnaryOp):
            return not selects(node.operand, test)
        return ast.unparse(node).lower() in test

    whole = ast.parse(expression, mode="eval").body
    parts = whole.values if isinstance(whole, ast.BoolOp) and isinstance(whole.op, ast.Or) else [whole]
    return [ast.unparse(part) for part in parts if not any(selects(part, test) for test in tests)]


def faults(words: list[str]) -> list[str]:
    """What is wrong with a command: files that are not there, parts of -k that select nothing."""
    paths = [ROOT / word if word.startswith("tests/") else ROOT / "tests" / word for word in words]
    places = [
        path
        for word, path in zip(words, paths, strict=True)
        if word.startswith("tests/") or ("/" not in word and path.is_dir())
    ]
    missing = [str(path.relative_to(ROOT)) for path in places if not path.exists()]
    if missing or "-k" not in words:
        return missing
    files = [f for place in places for f in ([place] if place.is_file() else sorted(place.rglob("test_*.py")))]
    markers = words[words.index("-m") + 1] if "-m" in words else "not slow"  # which setup.cfg has as the default
    return unselected(words[words.index("-k") + 1], [test for file in files for test in selectable(file, markers)])


@pytest.mark.parametrize("name", NAMES)
def test_commands_of_a_page_select_tests(name):
    found = commands((ROOT / name).read_text(encoding="utf-8"))
    assert {" ".join(words): wrong for words in found if (wrong := faults(words))} == {}


@pytest.mark.parametrize("name", NAMES)
def test_test_files_that_a_page_names_exist(name):
    named = set(re.findall(r"tests/[\w/]+\.py", (ROOT / name).read_text(encoding="utf-8")))
    assert [file for file in sorted(named) if not (ROOT / file).is_file()] == []


def test_a_command_that_selects_nothing_is_found():
    page = '`F` is\n`pytest tests/unit/test_docs.py`. `F -k "selects_nothing or nowhere"`, `pytest tests/unit/none.py`'
    here, *others = commands(page)
    assert faults(here) == []
    assert [faults(words) for words in others] == [["nowhere"], ["tests/unit/none.py"]]
    assert unselected("not nothing or a and b", ["a_nothing"]) == ["not nothing", "a and b"]
    assert unselected("Nothing and not b", ["a_nothing"]) == []
