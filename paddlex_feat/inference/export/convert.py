"""ONNX and OpenVINO forms of a Paddle graph."""

from __future__ import annotations

import importlib
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from paddlex_feat.config.registry import did_you_mean
from paddlex_feat.errors import ConfigError, DownloadError, OutputError, WeightsError
from paddlex_feat.fileio.atomic import atomic_path, require_disk_space
from paddlex_feat.fileio.digest import sha256_file
from paddlex_feat.fileio.temporary import TemporaryFolder, remove_stale
from paddlex_feat.fileio.user_folders import home_for_paddle
from paddlex_feat.hub.cache import ENV_CACHE, cache_folder, cache_to_write
from paddlex_feat.inference.engines import ENGINES, usable_engines
from paddlex_feat.inference.engines.graph_check import check_graph_operators
from paddlex_feat.inference.engines.paddle_engine import graph_files
from paddlex_feat.inference.engines.parameter_check import check_params_complete
from paddlex_feat.inference.engines.spec import require_package
from paddlex_feat.inference.model_info import PREFIX

log = logging.getLogger(__name__)
_PADDLE = "paddle"  # the form that every export writes, and that the others are made of

# In a process of its own: the converter prints from C++, changes Paddle's settings, and may crash. Its default
# optimize_tool, polygraphy, would install packages from an index of another vendor while it runs.
# Python puts the working directory first on sys.path: the folder of a model may hold a paddle2onnx.py.
_CONVERT = """
import sys
sys.path[:] = [place for place in sys.path if place]
import paddle2onnx
graph, parameters, target = sys.argv[1:]
paddle2onnx.export(graph, parameters, target, opset_version=17, optimize_tool="None")
"""


def graph_file_names() -> set[str]:
    """Names of all graph files, of every engine, that an inference directory may have."""
    return {f"{PREFIX}{suffix}" for spec in usable_engines() for suffix in spec.graph_suffixes}


def inference_file_names() -> set[str]:
    """Names of all files of an inference directory. Other files in its folder, such as programs, are not copied."""
    return graph_file_names() | {f"{PREFIX}.pdiparams", f"{PREFIX}.yml"}


def import_openvino() -> ModuleType:
    """OpenVINO without its telemetry, which otherwise reports each import over the network."""
    name = "openvino_telemetry"
    silenced = name not in sys.modules
    if silenced:
        vars(sys)["modules"][name] = None  # makes its import fail, which OpenVINO handles
    try:
        return importlib.import_module("openvino")
    finally:
        if silenced:
            del sys.modules[name]


def require_forms(forms: Iterable[str]) -> None:
    """Raise ConfigError for an unknown form of export, DependencyError if a package is missing that one needs."""
    for form in forms:
        if form != _PADDLE:
            _form_writer(form)


def _form_writer(form: str) -> Callable[[Path], None]:
    """The function that writes a form of export, whose packages are installed."""
    spec = ENGINES.get(form) if form in ENGINES else None
    if spec is None or spec.write_form is None:
        known = [_PADDLE, *(spec.name for spec in usable_engines() if spec.write_form)]
        raise ConfigError(
            f"Unknown form of export {form!r}.{did_you_mean(form, known)}",
            where="Export.format",
            fix=f"Choose from {', '.join(known)}.",
            code="unknown-form",
        )
    spec.require_writable()
    return spec.write_form


def onnx_file(folder: Path, trust_graph: bool = False) -> Path:
    """The ONNX graph of an inference directory: its own, else its Paddle graph converted once and kept in the cache.

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
            to_onnx(graph, parameters, target, trust_graph)
        except OutputError as error:
            fix = f"Free space, fix the permissions, or name another cache folder with {ENV_CACHE}."
            raise OutputError(error.what, where=error.where, fix=fix, code="cache-unwritable") from error
        log.info("%s was converted to ONNX, once: %s", graph, target)
    return target


def to_onnx(graph: Path, parameters: Path, target: Path, trust_graph: bool = False) -> None:
    """Write a Paddle graph as ONNX, completely or not at all. Raises WeightsError, DependencyError, OutputError."""
    ENGINES.get(_PADDLE).require_installed()
    require_package("paddle2onnx", ENGINES.get("onnx").install)
    check_graph_operators(graph, trust_graph)
    check_params_complete(parameters)
    with atomic_path(target) as temporary:
        words = [sys.executable, "-c", _CONVERT, *(str(p.resolve()) for p in (graph, parameters, temporary))]
        # In an empty folder, so that relative entries of PYTHONPATH find nothing; Paddle writes to the home folder.
        with TemporaryFolder() as empty, home_for_paddle():
            environment = {**os.environ, "TMPDIR": str(empty)}  # where it leaves folders behind
            done = subprocess.run(  # noqa: S603 - our own interpreter and files
                words, cwd=empty, env=environment, capture_output=True, text=True, errors="replace"
            )
        if done.returncode or not temporary.stat().st_size:  # it may report an error and still return 0
            raise WeightsError(
                f"paddle2onnx cannot convert the graph: {_reason(done.stdout + done.stderr)}",
                where=str(graph),
                fix="Use the engine paddle, or leave the form out of Export.format.",
                code="conversion-failed",
            )


def _reason(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line or "Error" in line]
    return (errors or lines or ["no message"])[-1][:300]


def write_forms(folder: Path, forms: Iterable[str]) -> None:
    """Write further forms of an inference directory's Paddle graph into it.

    Args:
        folder: inference directory.
        forms: names of engines; "paddle" is there already.

    Raises ConfigError for an unknown form, WeightsError, DependencyError, OutputError.
    """
    writers = {form: _form_writer(form) for form in forms if form != _PADDLE}
    if not writers:
        return
    _, parameters = graph_files(folder)
    require_disk_space(folder, len(writers) * parameters.stat().st_size)
    for name in ENGINES.names():  # onnx before openvino, which is made of it
        if name in writers:
            writers[name](folder)


def write_onnx(folder: Path) -> None:
    """Write inference.onnx."""
    to_onnx(*graph_files(folder), folder / f"{PREFIX}.onnx")


def write_openvino(folder: Path) -> None:
    """Write inference.xml and inference.bin, from inference.onnx if it is there, else from the Paddle graph."""
    openvino = import_openvino()
    with TemporaryFolder(folder) as scratch:
        onnx = folder / f"{PREFIX}.onnx"
        if not onnx.is_file():
            onnx = scratch / onnx.name
            to_onnx(*graph_files(folder), onnx)
        # By default it would round the weights to fp16.
        openvino.save_model(openvino.Core().read_model(str(onnx)), folder / f"{PREFIX}.xml", compress_to_fp16=False)
