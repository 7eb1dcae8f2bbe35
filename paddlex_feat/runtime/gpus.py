"""Facts about GPUs: how many are visible, which precisions they have, and why none is used."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from paddlex_feat.errors import DeviceError

log = logging.getLogger(__name__)

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")  # exists where the driver is loaded (Linux)
WSL_GPU = Path("/dev/dxg")  # of any vendor
_AMP_CAPABILITY = {"float16": (7, 0), "bfloat16": (8, 0)}  # below it, Paddle's autocast computes in float32


def visible_gpus() -> int:
    """GPUs that Paddle sees: 0 in the CPU build."""
    import paddle

    return paddle.device.cuda.device_count() if paddle.is_compiled_with_cuda() else 0


def warn_of_unused_gpu() -> None:
    """Log why "auto" found no GPU, where one seems to exist."""
    import paddle

    _warn(paddle.is_compiled_with_cuda(), NVIDIA_DRIVER.exists())


@functools.cache  # once a process: every model resolves its device
def _warn(gpu_build: bool, driver: bool) -> None:
    if gpu_build:
        log.warning(
            "The installed Paddle is the GPU build but sees no GPU, so the CPU is used. Check nvidia-smi: the driver "
            "may be missing or too old for this build, or CUDA_VISIBLE_DEVICES hides the GPUs."
        )
    elif driver:
        log.warning(
            "An NVIDIA driver is installed, but Paddle is the CPU build, so the CPU is used. To use the GPU, uninstall "
            "paddlepaddle and install paddlepaddle-gpu; with device cpu this warning does not appear."
        )


def expects_gpu(device: str) -> bool:
    """Whether `device` will be a GPU, as far as that can be told before Paddle is imported.

    For "auto": paddlepaddle-gpu is installed, an NVIDIA driver is loaded and CUDA_VISIBLE_DEVICES does not hide it.
    """
    if device != "auto":
        return device.startswith("gpu")
    if not (NVIDIA_DRIVER.exists() or WSL_GPU.exists()) or os.environ.get("CUDA_VISIBLE_DEVICES", "0") in ("", "-1"):
        return False
    try:
        importlib.metadata.version("paddlepaddle-gpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def require_amp(device: str, dtype: str, key: str) -> None:
    """Raise DeviceError where Paddle's autocast would silently compute in float32.

    Args:
        device: "cpu" or "gpu:N".
        dtype: "float16" or "bfloat16".
        key: the configuration key that asks for it, for messages.
    """
    if device == "cpu":
        raise DeviceError(
            "Mixed precision needs a GPU: on a CPU, Paddle's autocast has no effect.",
            where=key,
            fix=f"Leave {key} OFF, or use a GPU.",
            code="amp-on-cpu",
        )
    other = ", or Train.amp_dtype=float16" if dtype == "bfloat16" else ""
    require_dtype(device, dtype, key, f"Use {key}=OFF{other}.")


def require_dtype(device: str, dtype: str, key: str, fix: str) -> None:
    """Raise DeviceError where the GPU `device`, "gpu:N", is older than Paddle's autocast needs for `dtype`."""
    import paddle

    number = int(device.partition(":")[2])
    capability, needed = tuple(paddle.device.cuda.get_device_capability(number)), _AMP_CAPABILITY[dtype]
    if capability < needed and not paddle.is_compiled_with_rocm():
        raise DeviceError(
            f"{device} ({paddle.device.cuda.get_device_name(number)}) has compute capability "
            f"{'.'.join(map(str, capability))}; {dtype} needs {'.'.join(map(str, needed))}.",
            where=key,
            fix=fix,
            code="gpu-too-old",
        )


@contextlib.contextmanager
def exact_products() -> Iterator[None]:
    """Within it, GPUs compute float32 convolutions and products in float32, not in TF32, in the whole process.

    By default cuDNN's convolutions round their operands to the 10 bits of TF32, and before Paddle 3.3 cuBLAS's products
    do too. Nothing changes in the CPU build. The environment variable NVIDIA_TF32_OVERRIDE=1 overrides this.
    """
    import paddle

    core, before = paddle.base.core, {}
    for library in ("cudnn", "cublas") if paddle.is_compiled_with_cuda() else ():
        if hasattr(core, f"set_{library}_switch"):
            before[library] = getattr(core, f"get_{library}_switch")()
            getattr(core, f"set_{library}_switch")(False)
    try:
        yield
    finally:
        for library, switch in before.items():
            getattr(core, f"set_{library}_switch")(switch)
