"""Importing Paddle: when, with how many threads, on which device."""

from __future__ import annotations

import logging
import os
import re

from paddlex_feat.errors import DeviceError
from paddlex_feat.runtime.gpus import visible_gpus, warn_of_unused_gpu
from paddlex_feat.runtime.paddle_import import keep_dynamic_mode

log = logging.getLogger(__name__)


DEVICE = re.compile(r"(auto|(cpu|gpu|xpu|npu|mlu|gcu|dcu|iluvatar_gpu|metax_gpu)(:\d+(,\d+)*)?)")


def first_device(device: str) -> str:
    """The first of several devices, which is all that a mode of one process uses.

    "gpu:0,1" -> "gpu:0"; anything else as it is.
    """
    first, *others = device.split(",")
    if others:
        log.warning("%s: using %s alone, because this mode runs on one device.", device, first)
    return first


def checked_device(device: str) -> str:
    """A device's name in small letters. Raises DeviceError if it is none."""
    name = str(device).lower()
    if not DEVICE.fullmatch(name):
        raise DeviceError(
            f"{device!r} is not a device.",
            where="device",
            fix="Give auto, cpu, gpu, gpu:ID or gpu:ID,ID.",
            code="device-invalid",
        )
    return name


def resolve_device(device: str) -> str:
    """The full name of a device that is there: "cpu", "gpu:N" or, of several, "gpu:N,M" and "cpu:N,M".

    Args:
        device: "auto" (the first visible GPU, else the CPU), "cpu", "gpu", "gpu:N", or several.

    Raises DeviceError if a device is not there; the message lists those that are.
    """
    import paddle

    gpus = visible_gpus()
    device = checked_device(device)
    if device == "auto":
        if not gpus:
            warn_of_unused_gpu()
        return "gpu:0" if gpus else "cpu"
    kind, _, ids = device.partition(":")
    if kind == "cpu":
        return device if "," in ids else "cpu"
    wanted = ids or "0"
    missing = [i for i in wanted.split(",") if kind != "gpu" or int(i) >= gpus]
    if missing:
        reason = "" if paddle.is_compiled_with_cuda() else " The installed Paddle is the CPU build."
        available = ", ".join(["cpu", *(f"gpu:{i}" for i in range(gpus))])
        raise DeviceError(
            f"Device {device} does not exist here; available: {available}.{reason}",
            where="device",
            fix="Use auto (-o Global.device=auto, in Python device=None), or one of the devices listed.",
            code="device-missing",
        )
    return f"gpu:{wanted}"


def own_device(device: str, processes: int, local_rank: int) -> str:
    """The full name of the device of this process, one of several of a job, or the only one.

    In a job the ids in `device` no longer apply: the launcher made those GPUs the only visible ones, numbered from 0,
    and a cluster may show each process a single one.

    Args:
        device: what the whole job was given.
        processes: number of processes of the job.
        local_rank: of this process on its machine, from 0.

    Raises DeviceError.
    """
    device, gpus = checked_device(device), visible_gpus()
    if processes == 1 and device == "auto" and gpus > 1:
        every = ",".join(map(str, range(gpus)))
        log.info("Global.device=auto uses gpu:0 alone; to use all %d GPUs: -o Global.device=gpu:%s", gpus, every)
    if processes == 1 or device.startswith("cpu") or not gpus:
        return resolve_device(device)
    own = os.environ.get("FLAGS_selected_gpus", "").split(",")[0] or str(local_rank % gpus)
    os.environ["FLAGS_selected_gpus"] = own  # Paddle's collectives read it
    return resolve_device(f"gpu:{own}")


def select_device(device: str) -> str:
    """Make the first of the devices Paddle's current one and return its full name, "cpu" or "gpu:N".

    Paddle is in dynamic mode then. Takes and raises what `resolve_device` does.
    """
    import paddle

    if not paddle.in_dynamic_mode():  # a thread has imported Paddle before, and ended
        paddle.disable_static()
        keep_dynamic_mode()
    first = resolve_device(device).split(",")[0]
    name = "cpu" if first.startswith("cpu") else first
    paddle.set_device(name)
    return name
