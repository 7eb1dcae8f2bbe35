"""Inference engines: what runs the graph of an inference directory.

`ENGINES` has one entry for each engine; names in messages, export forms, PaddleX's settings and the choice of `auto`
derive from it. Another package adds an engine by an entry point of the group `paddlex_feat.engines`, see
docs/extending_engines.md. `create.create_engine` makes an engine.
"""

from __future__ import annotations

import logging
from pathlib import Path

from paddlex_feat.config.registry import Registry, did_you_mean
from paddlex_feat.errors import ConfigError, DependencyError
from paddlex_feat.inference.engines.spec import CPU_MICRO_BATCH, Engine, EngineOptions, EngineSpec

__all__ = [
    "AUTO",
    "CPU_MICRO_BATCH",
    "ENGINES",
    "HPI",
    "Engine",
    "EngineOptions",
    "EngineSpec",
    "find_engine",
    "usable_engines",
]

log = logging.getLogger(__name__)
AUTO = "auto"  # the fastest of the installed engines
HPI = "hpi"  # PaddleX's name: AUTO, or the backend of hpi_config


# The functions import when they are called: an engine that is not used costs nothing, and needs no package.
def _make_paddle(folder: Path, options: EngineOptions) -> Engine:
    from paddlex_feat.inference.engines.paddle_engine import PaddleEngine

    return PaddleEngine(folder, options)


def _make_onnx(folder: Path, options: EngineOptions) -> Engine:
    from paddlex_feat.inference.engines.onnx_engine import OnnxEngine

    return OnnxEngine(folder, options)


def _make_openvino(folder: Path, options: EngineOptions) -> Engine:
    from paddlex_feat.inference.engines.openvino_engine import OpenVINOEngine

    return OpenVINOEngine(folder, options)


def _write_onnx(folder: Path) -> None:
    from paddlex_feat.inference.export.convert import write_onnx

    write_onnx(folder)


def _write_openvino(folder: Path) -> None:
    from paddlex_feat.inference.export.convert import write_openvino

    write_openvino(folder)


ENGINES: Registry[EngineSpec] = Registry("engines", EngineSpec, "Predict.engine")
ENGINES.add(
    EngineSpec(
        name="paddle",
        make=_make_paddle,
        package="paddle",
        install="paddlex_feat[cpu]",
        precisions=("fp32", "bf16", "fp16"),  # fp16 on a GPU alone
        devices=("cpu", "gpu"),
        aliases=("paddle_static",),
        run_modes={"paddle_fp32": "fp32", "mkldnn": "fp32", "paddle_fp16": "fp16", "mkldnn_bf16": "bf16"},
        graph_suffixes=(".json", ".pdmodel"),
    )
)
ENGINES.add(
    EngineSpec(
        name="onnx",
        make=_make_onnx,
        package="onnxruntime",
        install="paddlex_feat[onnx]",
        devices=("cpu", "gpu"),
        aliases=("onnxruntime",),
        hpi_backends=("onnxruntime",),
        graph_suffixes=(".onnx",),
        write_form=_write_onnx,
        form_packages=("paddle2onnx",),
    )
)
ENGINES.add(
    EngineSpec(
        name="openvino",
        make=_make_openvino,
        package="openvino",
        install="paddlex_feat[openvino]",
        precisions=("fp32", "bf16", "fp16"),
        graph_suffixes=(".xml", ".bin"),
        write_form=_write_openvino,
        form_packages=("paddle2onnx",),
    )
)


def usable_engines() -> list[EngineSpec]:
    """All engines, in the registry's order, but those whose package cannot be imported, which are logged."""
    specs = []
    for name in ENGINES.names():
        try:
            specs.append(ENGINES.get(name))
        except DependencyError as error:
            log.warning("%s %s", error.what, error.fix)
    return specs


def find_engine(name: str, where: str = "engine") -> EngineSpec:
    """The engine of a name or alias.

    Args:
        name: what the user gave.
        where: the place that names it, for errors.

    Raises ConfigError for an unknown name, DependencyError if the package that provides it cannot be imported.
    """
    if name in ENGINES:
        return ENGINES.get(name, where)
    specs = usable_engines()
    for spec in specs:
        if name in spec.aliases:
            return spec
    known = [*ENGINES.names(), AUTO, *(alias for spec in specs for alias in spec.aliases), HPI]
    raise ConfigError(
        f"Unknown engine {name!r}.{did_you_mean(str(name), known)}",
        where=where,
        fix=f"Choose from {', '.join(known)}.",
        code="unknown-engine",
    )
