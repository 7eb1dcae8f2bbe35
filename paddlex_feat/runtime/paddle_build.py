"""Facts about the installed Paddle build and this machine's GPUs."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import Any

from paddlex_feat.errors import DependencyError

WHEELS = ("paddlepaddle", "paddlepaddle-gpu")
# The public package index has no paddlepaddle-gpu since 3.0; the CUDA version is part of the address.
INSTALL_GPU = "pip install paddlepaddle-gpu==3.3.1 -i https://www.paddlepaddle.org.cn/packages/stable/cu126/"
INSTALL_CPU = "pip install 'paddlepaddle>=3.0,<4'"
WITHOUT_PADDLE = ("driver", "cuda", "cudnn", "nccl", "onnxruntime")
_DRIVER = Path("/proc/driver/nvidia")


def require_one_paddle() -> None:
    """Raise DependencyError if both of Paddle's wheels are installed: they overwrite each other's files."""
    found = installed()
    if len(found) > 1:
        raise DependencyError(
            f"{' and '.join(found)} are both installed. They share the folder paddle, so parts of either are missing.",
            where="the installed packages",
            fix=reinstall(),
            code="paddle-twice",
        )


def installed() -> list[str]:
    """Names of Paddle's installed wheels. Takes about a millisecond and imports nothing of Paddle."""
    from importlib import metadata

    return [name for name in WHEELS if next(iter(metadata.distributions(name=name)), None)]


def reinstall() -> str:
    """Commands that leave one whole wheel installed, for this Python."""
    python = f"{shlex.quote(sys.executable)} -m"
    return (
        f"Remove both ({python} pip uninstall -y {' '.join(WHEELS)}), then install one. "
        f"GPU: {python} {INSTALL_GPU} (cu118, cu126, cu129 or cu130). CPU: {python} {INSTALL_CPU}."
    )


def describe(device: str) -> dict[str, Any] | None:
    """What decides results on a GPU; None on a CPU device. Paddle is imported already.

    Args:
        device: "cpu" or "gpu:N".

    Keys: name, capability ("9.0"), count (visible GPUs), driver, cuda, cudnn, nccl, tf32_cudnn, tf32_cublas,
    onnxruntime (package and version). A value that this Paddle or machine does not tell is None.
    """
    if not device.startswith("gpu"):
        return None
    import paddle

    cuda, core = paddle.device.cuda, paddle.base.core
    capability = _or_none(cuda, "get_device_capability", device)
    return {
        "name": _or_none(cuda, "get_device_name", device),
        "capability": capability and ".".join(map(str, capability)),
        "count": cuda.device_count(),
        "driver": driver(),
        "cuda": _or_none(paddle.version, "cuda"),
        "cudnn": _or_none(paddle.version, "cudnn"),
        "nccl": _or_none(paddle.version, "nccl"),
        "tf32_cudnn": _or_none(core, "get_cudnn_switch"),
        "tf32_cublas": _or_none(core, "get_cublas_switch"),
        "onnxruntime": _onnxruntime(),
    }


def present() -> dict[str, Any]:
    """The facts WITHOUT_PADDLE of `describe`, read without importing Paddle, as far as they are known."""
    known = {"driver": driver(), **_of_the_wheel(), "onnxruntime": _onnxruntime()}
    return {name: value for name, value in known.items() if value is not None}


def driver() -> str | None:
    """Version of NVIDIA's driver on Linux; None if the kernel has none loaded."""
    return _search(_DRIVER / "version", r"Kernel Module.*?\s(\d+(?:\.\d+)+)")


def _of_the_wheel() -> dict[str, str | None]:
    """CUDA, cuDNN and NCCL versions from the text of the GPU wheel's paddle/version."""
    from importlib import metadata

    wheel = next(iter(metadata.distributions(name=WHEELS[1])), None)
    if wheel is None:
        return {}
    file = Path(str(wheel.locate_file("paddle/version/__init__.py")))
    return {name: _search(file, rf"^{name}_version\s*=\s*'(.+)'") for name in ("cuda", "cudnn", "nccl")}


def _search(file: Path, pattern: str) -> str | None:
    try:
        found = re.search(pattern, file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    except OSError:
        return None
    return found[1] if found else None


def _onnxruntime() -> str | None:
    from importlib import metadata

    found = [
        f"{name} {wheel.version}"
        for name in ("onnxruntime-gpu", "onnxruntime")
        for wheel in metadata.distributions(name=name)
    ]
    return ", ".join(found) or None


def _or_none(module: Any, name: str, *arguments: Any) -> Any:
    """A fact that is worth recording but not worth an error: names and forms differ between Paddle's versions."""
    try:
        return getattr(module, name)(*arguments)
    except Exception:  # noqa: BLE001
        return None
