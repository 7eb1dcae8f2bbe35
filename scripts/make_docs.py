"""Write docs/configuration.md, docs/config.schema.json and the tables in docs/training.md and docs/check_dataset.md."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from paddlex_feat.checks import CHECKS
from paddlex_feat.config import aliases
from paddlex_feat.config.describe import describe_keys
from paddlex_feat.config.recipes import RECIPES
from paddlex_feat.config.schema import Config
from paddlex_feat.data.converters import CONVERTERS
from paddlex_feat.data.findings import FindingSpec
from paddlex_feat.data.lists.split import MIXES_LABELS
from paddlex_feat.data.readers import READERS
from paddlex_feat.data.readers.find import EMPTY_LIST

ROOT = Path(__file__).resolve().parent.parent
MARK = "<!-- keys: made by python scripts/make_docs.py -->\n"
FINDINGS = ("<!-- findings: made by python scripts/make_docs.py -->\n", "<!-- end of findings -->\n")
HEADER = """# Configuration keys

Made by `python scripts/make_docs.py` from `paddlex_feat/config/schema.py` and `train_schema.py`; do not edit.

Set a key in the YAML file or with `-o KEY=VALUE`. The value of `-o` is a YAML scalar or list, split
off at the first `=`, and never evaluated as code. Precedence, lowest first: the defaults here, what
the model's recipe changes (below), the file of `-c`, `-o`. An unknown key is an error that names the
nearest one. Editors check a file against [config.schema.json](config.schema.json).

**Text.** Where a key takes text, such as a path, `-o` takes the text literally: `-o 'Predict.input=[a] b.jpg'`,
`#1.jpg` and `a: b.jpg` are these names. YAML's quotes around the whole text are taken off, unless a file has them in
its name. Numbers and truth values (`0123`, `1e5`, `on`) are an error that shows how to quote them, unless a file or
folder has that name; for `Predict.input` they are names, as typed. Names need not be UTF-8.

**Null.** `-o KEY=` without a value is an error. Write `KEY=null`; what null does is logged.

**Paths.** `~` and `~user` at the start of a path mean the home folder, in every key, for `-c` and in the Python API.
A path that the mode uses and that holds `$NAME`, `${…}` or `%NAME%`, or a drive or share of Windows, is an error before
anything is written, unless it exists under exactly that name: variables are not expanded. A faulty `Global.output`, or
one that is misspelt, creates nothing.

**Encoding.** The file is UTF-8 text; UTF-16 is read too, with a notice.
"""
FORMER = """They keep working in YAML files, in `-o` and in the `config.yaml` of earlier runs, each with a notice.
Both names of a key in one file, or both in `-o`, are an error; `-o` overrides a file under either name.
"""


def configuration_page() -> str:
    """The page of all keys, a table a section."""
    lines, section = [HEADER], ""
    for row in describe_keys():
        if row.name.split(".")[0] != section:
            section = row.name.split(".")[0]
            lines += [f"## {section}", "", "| key | default | unit | values | meaning |", "|---|---|---|---|---|"]
        lines.append(f"| `{row.name}` | `{row.default}` | {row.unit} | {row.type} | {row.meaning} |")
        if row.name == _last_key(section):
            lines.append("")
    lines += ["## What the recipes change", "", "| model | key | value |", "|---|---|---|"]
    for model, recipe in RECIPES.items():
        lines += [f"| {model} | `{key}` | `{'null' if value is None else value}` |" for key, value in flat(recipe)]
    lines += ["", "## Former names", "", FORMER, "| former | present |", "|---|---|"]
    lines += [f"| `{former}` | `{name}` |" for former, name in aliases.KEYS.items()]
    for name, values in aliases.VALUES.items():
        lines += [f"| `{name}: {former}` | `{name}: {value}` |" for former, value in values.items()]
    return "\n".join(lines) + "\n"


def training_page(page: str) -> str:
    """docs/training.md with the table below its mark made anew."""
    prose = page.partition(MARK)[0]
    lines = ["", "| key | default | unit | values | meaning |", "|---|---|---|---|---|"]
    for row in describe_keys():
        if row.name.startswith(("Model.", "Train.")):
            lines.append(f"| `{row.name}` | `{row.default}` | {row.unit} | {row.type} | {row.meaning} |")
    return prose + MARK + "\n".join(lines) + "\n"


def check_dataset_page(page: str) -> str:
    """docs/check_dataset.md with a new table of findings between its marks."""
    begin, end = FINDINGS
    lines = ["| code | severity | meaning | what to do |", "|---|---|---|---|"]
    for spec in finding_specs():
        severity = f"{spec.severity}, {spec.otherwise}" if spec.otherwise else spec.severity
        lines.append(f"| `{spec.code}` | {severity} | {spec.meaning} | {spec.fix} |")
    table = "".join(f"{line}\n" for line in lines)
    return f"{page.partition(begin)[0]}{begin}\n{table}\n{end}{page.partition(end)[2]}"


def finding_specs() -> Iterable[FindingSpec]:
    """The kinds of findings of readers, checks, the split and converters, each once."""
    specs = [spec for entry in (*READERS, *CHECKS) for spec in entry.findings]
    specs += [MIXES_LABELS, EMPTY_LIST, *(spec for converter in CONVERTERS for spec in converter.findings)]
    return {spec.code: spec for spec in specs}.values()


def flat(keys: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Dotted names and values of a nested recipe."""
    rows: list[tuple[str, Any]] = []
    for name, value in keys.items():
        rows += flat(value, f"{prefix}{name}.") if isinstance(value, dict) else [(prefix + name, value)]
    return rows


def _last_key(section: str) -> str:
    return [row.name for row in describe_keys() if row.name.startswith(f"{section}.")][-1]


def json_schema() -> dict[str, Any]:
    """JSON Schema of a configuration file."""
    schema = Config.model_json_schema()
    for former, name in aliases.KEYS.items():
        section, last = _section_of(schema, name), name.rpartition(".")[2]
        note = {"description": f"Former name of {last}.", "deprecated": True}
        section["properties"][former.rpartition(".")[2]] = {**section["properties"][last], **note}
    for name, values in aliases.VALUES.items():
        _section_of(schema, name)["properties"][name.rpartition(".")[2]]["enum"] += values
    return schema


def _section_of(schema: dict[str, Any], key: str) -> dict[str, Any]:
    """The part of a JSON Schema that describes the section of a dotted key."""
    part = schema
    for name in key.split(".")[:-1]:
        part = schema["$defs"][part["properties"][name]["$ref"].rpartition("/")[2]]
    return part


if __name__ == "__main__":
    docs = ROOT / "docs"
    (docs / "configuration.md").write_text(configuration_page(), encoding="utf-8")
    page = docs / "training.md"
    page.write_text(training_page(page.read_text(encoding="utf-8")), encoding="utf-8")
    page = docs / "check_dataset.md"
    page.write_text(check_dataset_page(page.read_text(encoding="utf-8")), encoding="utf-8")
    (docs / "config.schema.json").write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
