"""Installs a project that extends the package into a folder, without pip and network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest


def install(project: Path, target: Path) -> Path:
    """Copy the packages of a project (pyproject.toml) to `target` with the metadata that pip would write there.

    Returns `target`, to be put on sys.path or PYTHONPATH.
    """
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    settings = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    name, version = settings["project"]["name"], settings["project"]["version"]
    for package in settings["tool"]["setuptools"]["packages"]:
        shutil.copytree(project / package, target / package, ignore=shutil.ignore_patterns("__pycache__"))
    info = target / f"{name}-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    groups = settings["project"]["entry-points"]
    lines = [f"[{group}]\n" + "".join(f"{n} = {v}\n" for n, v in points.items()) for group, points in groups.items()]
    (info / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")
    return target
