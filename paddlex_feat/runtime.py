"""Importing Paddle: when, with how many threads, on which device."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import re
import signal
import sys
import warnings
from pathlib import Path

from paddlex_feat import limits, paddle_build
from paddlex_feat.errors import DependencyError, DeviceError
from paddlex_feat.gpus import visible_gpus, warn_of_unused_gpu
from paddlex_feat.homes import home_for_paddle
from paddlex_feat.scratch import private_folder
from paddlex_feat.signals import kept

log = logging.getLogger(__name__)

# What Paddle 3.3 says of its own code at every import or graph capture.
_HARMLESS_WARNINGS = (
    "No ccache found",
    "Tensor do not have 'place' interface for pir graph mode",
    "When training, we now always track global mean and variance",
)

# Signals that Paddle takes over when it is imported, to print a C++ trace.
_TAKEN = (signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV, signal.SIGTERM)

DEVICE = re.compile(r"(auto|(cpu|gpu|xpu|npu|mlu|gcu|dcu|iluvatar_gpu|metax_gpu)(:\d+(,\d+)*)?)")


def cpu_count() -> int:
    """Processors this process may use, by its affinity and the CPU quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(count, limits.processors() or count)


def memory_limit() -> int:
    """Bytes that this process can take at most: the machine's memory, or its control group's limit.

    Not what is free just now: what depends on it must be the same in every run on a machine.
    """
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min(machine, limits.memory() or machine)


def physical_cores(folder: Path = Path("/sys/devices/system/cpu")) -> int:
    """Cores this process may use: the two threads of one core count once. Where Linux does not say, `cpu_count`.

    A CPU quota limits them too: threads beyond it would be stopped in the middle of their work.
    """
    try:
        allowed = os.sched_getaffinity(0)
        cores = len({(folder / f"cpu{i}/topology/thread_siblings_list").read_text() for i in allowed})
    except (OSError, AttributeError):
        return cpu_count()
    return min(cores, limits.processors() or cores)


_replaced: dict[str, str] = {}  # OMP_NUM_THREADS as prepare_paddle has set it -> as the user had


def _users_wish() -> str:
    current = os.environ.get("OMP_NUM_THREADS", "")
    return _replaced.get(current, current)


def cpu_threads(threads: int) -> int:
    """`threads`, where 0 takes OMP_NUM_THREADS, else the physical cores."""
    wanted = _users_wish()
    return threads or (int(wanted) if wanted.isdecimal() and int(wanted) else physical_cores())


def prepare_paddle(
    threads: int = 0, training: bool = False, onednn_training: bool = False, deterministic: bool = False
) -> None:
    """Set what Paddle reads from the environment at import, then import it.

    Args:
        threads: CPU threads of Paddle's operators; 0 takes OMP_NUM_THREADS, else the physical cores.
        training: many small steps follow, between which idle threads must not fall asleep.
        onednn_training: let static programs use oneDNN (see models/cpu_conv.py).
        deterministic: ask for GPU kernels that give the same bits in every run.

    Raises DependencyError if Paddle is not installed, damaged, or installed as both of its wheels.
    """
    users, own = _users_wish(), str(cpu_threads(threads))
    os.environ["OMP_NUM_THREADS"] = own
    _replaced.clear()
    _replaced[own] = users
    # Paddle Inference on a GPU sets this flag to 32 MiB for the whole process unless the environment names it, and a
    # training in the same process would then choose other convolutions. 512 is Paddle's default.
    os.environ.setdefault("FLAGS_conv_workspace_size_limit", "512")
    if onednn_training:
        os.environ["FLAGS_use_mkldnn"] = "1"
    if deterministic:
        os.environ["FLAGS_cudnn_deterministic"] = os.environ["FLAGS_embedding_deterministic"] = "1"
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS on several streams
    os.environ.setdefault("GLOG_minloglevel", "2")  # Paddle's own INFO lines are not for our users
    if not training:
        # ms that an idle thread of Paddle's OpenMP (Intel's) spins: its own 200 would take a core from the decoders.
        os.environ.setdefault("KMP_BLOCKTIME", "1")
    for message in _HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    if "paddle" in sys.modules:
        _set_onednn()
    else:
        notes = io.StringIO()
        with contextlib.redirect_stderr(notes), kept(_TAKEN), home_for_paddle():
            # It warns of any OMP_NUM_THREADS but 1.
            _import_paddle()
        log.debug("Paddle's notes at import: %s", notes.getvalue().strip() or "none")
    _keep_dynamic_mode()
    # Captured graphs are written as Python files, and read back; Paddle's choice is below ~/.cache.
    vars(importlib.import_module("paddle.jit.dy2static.utils"))["get_temp_dir"] = _captures_folder


_dynamic: list[object] = []


def _keep_dynamic_mode() -> None:
    """Paddle's dynamic mode would end with the thread that has imported it; the next run may be in another one."""
    local = getattr(importlib.import_module("paddle.base.framework"), "global_var", None)
    manager = getattr(local, "_functional_dygraph_context_manager", None)
    if manager is not None and manager not in _dynamic:
        _dynamic.append(manager)


def _set_onednn() -> None:
    """Tell a Paddle that is imported already what it reads from the environment at import."""
    import paddle

    wanted = os.environ.get("FLAGS_use_mkldnn")
    if wanted in ("0", "1"):  # as a training sets it
        with contextlib.suppress(ValueError):  # a Paddle that does not know the flag
            paddle.set_flags({"FLAGS_use_mkldnn": wanted == "1"})


def _captures_folder() -> str:
    folder = private_folder() / "paddle"
    folder.mkdir(exist_ok=True)
    return str(folder)


def _import_paddle() -> None:
    paddle_build.require_one_paddle()
    try:
        paddle = importlib.import_module("paddle")
    except ModuleNotFoundError as error:
        if error.name != "paddle":
            raise
        raise DependencyError(
            "PaddlePaddle is not installed, and this mode needs it.",
            fix=paddle_build.reinstall()
            if paddle_build.installed()
            else f"CPU: {paddle_build.INSTALL_CPU}. GPU: {paddle_build.INSTALL_GPU} "
            "(cu118, cu126, cu129 or cu130 by the driver; cu129 or newer for the newest cards).",
        ) from None
    if not hasattr(paddle, "disable_signal_handler"):
        raise DependencyError(
            "PaddlePaddle is damaged: files are missing. Probably one of its two wheels was removed after both were "
            "installed.",
            where=str(next(iter(paddle.__path__), "paddle")),
            fix=paddle_build.reinstall(),
        )
    paddle.disable_signal_handler()


def first_device(device: str) -> str:
    """The first of several devices, which is all that modes other than train and evaluate use.

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
            f"{device!r} names no device.", where="device", fix="Give auto, cpu, gpu, gpu:ID or gpu:ID,ID."
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
            f"Device {device} is not there; available: {available}.{reason}",
            where="device",
            fix="Use auto (-o Global.device=auto, in Python device=None), or one of the devices listed.",
        )
    return f"gpu:{wanted}"


def own_device(device: str, processes: int, local_rank: int) -> str:
    """The full name of the device of this process, one of several of a job, or the only one.

    In a job the ids in `device` no longer apply: the launcher made those GPUs the only visible ones, numbered from 0,
    and a cluster may show each process a single one.

    Args:
        device: what the whole job was given. processes: of the job. local_rank: of this one on its machine.

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
        _keep_dynamic_mode()
    first = resolve_device(device).split(",")[0]
    name = "cpu" if first.startswith("cpu") else first
    paddle.set_device(name)
    return name
