"""What an inference engine is, and what the rest of the package knows of one. Neither Paddle nor OpenCV is imported."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from paddlex_feat.errors import DependencyError

if TYPE_CHECKING:
    import numpy as np

# Images of one call on a CPU: the activations of 64 images exceed the processor's caches.
# At 224 px Paddle computes 8 at a time half as fast again as 64; OpenVINO and ONNX Runtime hardly differ.
CPU_MICRO_BATCH = 8


class Engine(Protocol):
    """A graph, ready to run. Several threads may call `run` at once.

    Attributes:
        name: name of its `EngineSpec`.
        device: "cpu" or "gpu:N".
        precision: in which it computes, such as "fp32"; input and output are float32 in any case.
        micro_batch: images that it computes best at a time; 0: all of a batch.
    """

    name: str
    device: str
    precision: str
    micro_batch: int

    def run(self, x: np.ndarray) -> np.ndarray:
        """float32 [N, 3, S, S] -> float32 [N, D], any N. The result belongs to the caller."""


@dataclass(frozen=True)
class EngineOptions:
    """How an inference directory is run.

    Attributes:
        engine: name of an engine, or "auto".
        precision: "fp32", "bf16", "fp16", or another one that the engine has.
        threads: CPU threads; 0 takes OMP_NUM_THREADS, else the physical cores.
        device: "auto", "cpu" or "gpu:N".
        trust_graph: run a Paddle graph whatever operators it has.
    """

    engine: str = "paddle"
    precision: str = "fp32"
    threads: int = 0
    device: str = "auto"
    trust_graph: bool = False


@dataclass(frozen=True)
class EngineSpec:
    """One engine, as an entry of `ENGINES`.

    Attributes:
        name: as `Predict.engine` and `create_model` name it.
        make: loads an inference directory: (folder, options) -> Engine. Raises WeightsError for a directory that
            cannot be used, DeviceError for a device or processor that cannot do it, DependencyError.
        package: module that it needs.
        install: what pip installs to get that module, such as "paddlex_feat[onnx]".
        precisions: those that it has on some device.
        devices: "cpu", "gpu" or both.
        aliases: other names of the engine.
        hpi_backends: other names in PaddleX's hpi_config.backend.
        run_modes: PaddleX's run modes that mean this engine -> precision.
        graph_suffixes: of its own graph files in an inference directory, which are named inference<suffix>.
        write_form: writes these files beside Paddle's graph: (inference directory) -> None; None: cannot be exported.
        form_packages: modules that `write_form` needs besides `package`.
    """

    name: str
    make: Callable[[Path, EngineOptions], Engine]
    package: str
    install: str
    precisions: tuple[str, ...] = ("fp32",)
    devices: tuple[str, ...] = ("cpu",)
    aliases: tuple[str, ...] = ()
    hpi_backends: tuple[str, ...] = ()
    run_modes: Mapping[str, str] = field(default_factory=dict)
    graph_suffixes: tuple[str, ...] = ()
    write_form: Callable[[Path], None] | None = None
    form_packages: tuple[str, ...] = ()

    def is_installed(self) -> bool:
        """Whether the engine's package can be found."""
        return importlib.util.find_spec(self.package) is not None

    def require_installed(self) -> None:
        """Raise DependencyError, with the pip command, if the engine's package is not installed."""
        require_package(self.package, self.install)

    def require_writable(self) -> None:
        """Raise DependencyError if a package is missing that exporting this engine's form needs."""
        for package in (*self.form_packages, self.package):
            require_package(package, self.install)


def require_package(package: str, install: str) -> None:
    """Raise DependencyError if a module cannot be found; `install` is what pip installs to get it."""
    if importlib.util.find_spec(package) is None:
        raise DependencyError(
            f"The package {package} is not installed.", fix=f"pip install '{install}'", code="package-missing"
        )
