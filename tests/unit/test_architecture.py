"""The package's rooms: who imports whom, what each offers, and the page that draws them."""

from __future__ import annotations

import ast
import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import ROOT

PACKAGE = ROOT / "paddlex_feat"
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FILES = sorted(PACKAGE.rglob("*.py"))
LAZY = [f for f in FILES if f.name == "__init__.py" and "lazy_names(" in f.read_text(encoding="utf-8")]
ROOMS = sorted(f.parent.name for f in PACKAGE.glob("*/__init__.py"))


def floors() -> list[list[str]]:
    """The rooms of each floor by .importlinter, the top first."""
    contract = configparser.ConfigParser()
    contract.read(ROOT / ".importlinter")
    lines = contract["importlinter:contract:floors"]["layers"].split("\n")
    return [re.split(r" \| ", line) for line in lines if line]


LINT = """if True:
    import sys
    sys.path.insert(0, ".")
    from importlinter.cli import lint_imports
    sys.exit(lint_imports(config_filename=".importlinter", no_cache=True))
"""


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """The contract on a folder; in a process of its own, because import-linter switches all loggers off."""
    return subprocess.run([sys.executable, "-I", "-c", LINT], cwd=folder, capture_output=True, text=True)


def test_imports_run_downward():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("room", "line"),
    [
        ("fileio", "from paddlex_feat.config import load"),
        ("losses", "import paddlex_feat.data.samplers"),
        ("data", "from paddlex_feat import __version__"),
        ("evaluation", "def f():\n    import paddle"),
    ],
)
def test_the_contract_finds_an_import_that_is_not_allowed(tmp_path, room, line):
    (tmp_path / "paddlex_feat").mkdir()
    for name in (name for floor in floors() for name in floor):
        folder = tmp_path / "paddlex_feat" / name
        folder.mkdir()
        (folder / "__init__.py").write_text("")
    (tmp_path / "paddlex_feat/__init__.py").write_text('__version__ = "1"\n')
    for name in ("config/load.py", "data/samplers.py"):
        (tmp_path / "paddlex_feat" / name).write_text("")
    (tmp_path / ".importlinter").write_text((ROOT / ".importlinter").read_text())
    (tmp_path / "paddlex_feat/runtime/paddle_import.py").write_text("import paddle\n")
    assert lint(tmp_path).returncode == 0
    (tmp_path / f"paddlex_feat/{room}/wrong.py").write_text(f"{line}\n")
    assert lint(tmp_path).returncode == 1


def test_the_page_draws_every_room_on_its_floor():
    """The picture, and the table's rows in the contract's order."""
    expected = [(str(number), name) for number, floor in enumerate(floors()[1:], 1) for name in floor]
    table = re.findall(r"^\| (\d+) \| `(\w+)(?:/|\.py)` \|", PAGE, re.MULTILINE)
    assert sorted(table) == sorted(expected) and [int(number) for number, _ in table] == sorted(
        int(n) for n, _ in table
    )
    assert set(ROOMS) == {name for _, name in expected} - {"cli", "errors"}
    drawn = re.findall(r'^    (\w+)\["<b>', PAGE, re.MULTILINE)
    assert sorted(drawn) == sorted([*(name for _, name in expected), "api"])


def test_files_that_the_page_names_exist():
    table = PAGE.partition("## Rooms")[2].partition("## How data flows")[0]
    for line in table.splitlines():
        room = re.match(r"\| \d+ \| `(\w+)/`", line)
        for name in re.findall(r"`(\w+(?:\.py|/))`", line.partition("|")[2]):
            if room and name != f"{room[1]}/":
                assert any((PACKAGE / room[1]).rglob(name.rstrip("/"))), name


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_a_door_plate(room):
    assert ast.get_docstring(ast.parse((PACKAGE / room / "__init__.py").read_text(encoding="utf-8")))


@pytest.mark.parametrize("file", LAZY, ids=lambda file: file.parent.name)
def test_names_of_a_package_are_imported_when_they_are_used(file):
    name = ".".join(file.relative_to(ROOT).parent.parts)
    code = (
        f"import sys, {name} as package\n"
        "print(*{'numpy', 'cv2', 'paddle', 'matplotlib', 'PIL', 'pydantic', 'yaml'} & set(sys.modules))\n"
        "assert set(package.__all__) <= set(dir(package)) and not hasattr(package, 'no_such_name')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "\n", done.stdout + done.stderr


@pytest.mark.parametrize("file", LAZY, ids=lambda file: file.parent.name)
def test_names_for_type_checkers_are_those_that_are_imported(file):
    """Names and their modules under `if TYPE_CHECKING`, in the call of lazy_names and in __all__."""
    package = ".".join(file.relative_to(ROOT).parent.parts)
    tree = ast.parse(file.read_text(encoding="utf-8"))
    (checked,) = (n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    imported = {(n.module, a.name) for n in ast.walk(checked) if isinstance(n, ast.ImportFrom) for a in n.names}
    (call,) = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func) == "lazy_names")
    modules = ast.literal_eval(call.args[1])
    lazy = {(f"{package}.{module}", name) for module, names in modules.items() for name in names}
    assert lazy == imported
    (listed,) = (
        ast.literal_eval(n.value) for n in tree.body if isinstance(n, ast.Assign) and "__all__" in ast.unparse(n)
    )
    assert set(listed) - {"__version__"} == {name for _, name in lazy}


def test_public_names_have_docstrings():
    for file in FILES:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
                assert len(ast.get_docstring(node) or "") > 8, f"{file}: {node.name}"


def test_prediction_imports_nothing_of_training():
    code = "import sys, paddlex_feat.inference.predictor; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "paddlex_feat.inference.engines.create" in loaded
    assert not loaded & {"paddle", "paddlex_feat.models", "paddlex_feat.training", "paddlex_feat.losses"}
