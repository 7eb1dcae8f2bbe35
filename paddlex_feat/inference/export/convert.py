"""ONNX and OpenVINO forms of a Paddle graph."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import subprocess
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from paddlex_feat.errors import DependencyError, DownloadError, OutputError, WeightsError
from paddlex_feat.fileio.atomic import atomic_path, require_disk_space
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.fileio.temporary import TemporaryFolder, remove_stale
from paddlex_feat.fileio.user_folders import home_for_paddle
from paddlex_feat.hub.cache import ENV_CACHE, cache_folder, cache_to_write
from paddlex_feat.inference.engines.graph_check import require_pure
from paddlex_feat.inference.engines.paddle_engine import graph_files
from paddlex_feat.inference.engines.parameter_check import require_whole
from paddlex_feat.inference.model_info import PREFIX

log = logging.getLogger(__name__)

# All graphs that an inference directory may hold.
GRAPH_FILES = {f"{PREFIX}{suffix}" for suffix in (".json", ".pdmodel", ".onnx", ".xml", ".bin")}
# All that one is made of. Whatever else lies there, perhaps a program, is nothing that is copied.
INFERENCE_FILES = GRAPH_FILES | {f"{PREFIX}.pdiparams", f"{PREFIX}.yml"}
# The packages that writing and checking a form takes.
_PACKAGES = {"paddle": (), "onnx": ("paddle2onnx", "onnxruntime"), "openvino": ("paddle2onnx", "openvino")}
_EXTRAS = {"paddle": "cpu", "paddle2onnx": "onnx", "onnxruntime": "onnx", "openvino": "openvino"}

# In a process of its own: the converter prints from C++, switches Paddle's settings, and may crash. Its own choice
# of optimize_tool, polygraphy, would install packages from an index of another vendor while it runs.
# Python puts the working directory first among the places of code: the folder of a model may hold a paddle2onnx.py.
_CONVERT = """
import sys
sys.path[:] = [place for place in sys.path if place]
import paddle2onnx
graph, parameters, target = sys.argv[1:]
paddle2onnx.export(graph, parameters, target, opset_version=17, optimize_tool="None")
"""


def require(package: str) -> None:
    """Raise DependencyError, naming the extra, if an optional package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise DependencyError(
            f"The package {package} is not installed.", fix=f"pip install 'paddlex_feat[{_EXTRAS[package]}]'"
        )


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry, which otherwise reports each import to its makers over the network."""
    name = "openvino_telemetry"
    silenced = name not in sys.modules
    if silenced:
        vars(sys)["modules"][name] = None  # it cannot be imported, which OpenVINO allows for
    try:
        return importlib.import_module("openvino")
    finally:
        if silenced:
            del sys.modules[name]


def require_forms(forms: Iterable[str]) -> None:
    """Raise DependencyError if a form of export ("paddle", "onnx", "openvino") cannot be written here."""
    for form in forms:
        for package in _PACKAGES[form]:
            require(package)


def onnx_file(folder: Path) -> Path:
    """The ONNX graph of an inference directory: its own, else one made of its Paddle graph once and kept in the cache.

    Raises WeightsError, DependencyError, OutputError.
    """
    own = folder / f"{PREFIX}.onnx"
    if own.is_file():
        return own
    graph, parameters = graph_files(folder)
    part = Path("converted", sha256_file(graph, parameters)[:16], own.name)
    with suppress(DownloadError):  # there is no home folder
        target = cache_folder() / part
        if target.is_file():
            return target
    target = cache_to_write() / part
    if not target.is_file():
        remove_stale(target.parent)
        try:
            to_onnx(graph, parameters, target)
        except OutputError as error:
            fix = f"Free space, fix the permissions, or name another cache folder with {ENV_CACHE}."
            raise OutputError(error.what, where=error.where, fix=fix) from error
        log.info("%s was converted to ONNX, once: %s", graph, target)
    return target


def to_onnx(graph: Path, parameters: Path, target: Path) -> None:
    """Write a Paddle graph as ONNX, whole or not at all. Raises WeightsError, DependencyError, OutputError."""
    for package in ("paddle", "paddle2onnx"):
        require(package)
    require_pure(graph)
    require_whole(parameters)
    with atomic_path(target) as temporary:
        words = [sys.executable, "-c", _CONVERT, *(str(p.resolve()) for p in (graph, parameters, temporary))]
        # Relative places of PYTHONPATH name nothing in an empty folder, and Paddle writes to the home folder.
        with TemporaryFolder() as empty, home_for_paddle():
            environment = {**os.environ, "TMPDIR": str(empty)}  # where it leaves folders behind
            done = subprocess.run(  # noqa: S603 - our own interpreter and files
                words, cwd=empty, env=environment, capture_output=True, text=True, errors="replace"
            )
        if done.returncode or not temporary.stat().st_size:  # it may report an error and go on
            raise WeightsError(
                f"paddle2onnx cannot convert the graph: {_reason(done.stdout + done.stderr)}",
                where=str(graph),
                fix="Use the engine paddle, or leave the form out of Export.format.",
            )


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "Error" in line]
    return (errors or lines or ["it says nothing"])[-1][:300]


def write_forms(folder: Path, forms: Iterable[str]) -> None:
    """Write the forms of an inference directory's Paddle graph that are wanted beside it.

    "onnx": inference.onnx; "openvino": inference.xml and inference.bin.
    Raises WeightsError, DependencyError, OutputError.
    """
    wanted = set(forms) - {"paddle"}
    if not wanted:
        return
    onnx = folder / f"{PREFIX}.onnx"
    graph, parameters = graph_files(folder)
    require_disk_space(folder, len(wanted) * parameters.stat().st_size)
    to_onnx(graph, parameters, onnx)
    if "openvino" in wanted:
        require("openvino")
        openvino = import_openvino()
        # Its own choice is to round the weights to fp16.
        openvino.save_model(openvino.Core().read_model(str(onnx)), folder / f"{PREFIX}.xml", compress_to_fp16=False)
    if "onnx" not in wanted:
        onnx.unlink()
