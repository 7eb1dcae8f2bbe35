"""Import Paddle with the environment that it reads at import."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator

from paddlex_feat.errors import DependencyError
from paddlex_feat.fileio.temporary import private_folder
from paddlex_feat.fileio.user_folders import home_for_paddle
from paddlex_feat.runtime import paddle_build
from paddlex_feat.runtime.collector import without_collector
from paddlex_feat.runtime.cpu import cpu_threads, is_amd_with_avx2, replaced_omp_threads, user_omp_threads
from paddlex_feat.runtime.signals import existing, restored_handlers

log = logging.getLogger(__name__)

# What Paddle 3.3 says of its own code at every import or graph capture.
_HARMLESS_WARNINGS = (
    "No ccache found",
    "Tensor do not have 'place' interface for pir graph mode",
    "When training, we now always track global mean and variance",
)


_MKL = "MKL_DEBUG_CPU_TYPE"  # which MKL reads at its first product in a process, and never again
_mkl: dict[
    str, str | None
] = {}  # "users": its value before the first `prepare_paddle` of this process; "own": after it

# Signals that Paddle takes over when it is imported, to print a C++ trace.
_TAKEN = existing("SIGILL", "SIGABRT", "SIGBUS", "SIGFPE", "SIGSEGV", "SIGTERM")


def prepare_paddle(
    threads: int = 0,
    training: bool = False,
    onednn_training: bool = False,
    deterministic: bool = False,
    fast_products: bool = False,
) -> None:
    """Set what Paddle reads from the environment at import, then import it.

    Args:
        threads: CPU threads of Paddle's operators; 0 takes OMP_NUM_THREADS, else the physical cores.
        training: many small steps follow, between which idle threads must not fall asleep.
        onednn_training: let static programs use oneDNN (see models/cpu_conv.py).
        deterministic: ask for GPU kernels that give the same bits in every run.
        fast_products: on a processor of AMD let MKL multiply matrices with AVX2. The MKL in Paddle's wheels
            does so on Intel's alone: a fifth of the time. It rounds otherwise, so official recipes go without. The
            first call in a process decides: MKL cannot be told twice.

    Raises DependencyError if Paddle is not installed, damaged, or installed as both of its wheels.
    """
    users, own = user_omp_threads(), str(cpu_threads(threads))
    os.environ["OMP_NUM_THREADS"] = own
    replaced_omp_threads.clear()
    replaced_omp_threads[own] = users
    # Paddle Inference on a GPU sets this flag to 32 MiB for the whole process unless the environment names it, and a
    # training in the same process would then choose other convolutions. 512 is Paddle's default.
    os.environ.setdefault("FLAGS_conv_workspace_size_limit", "512")
    if not _mkl:
        _mkl["users"] = os.environ.get(_MKL)
        if fast_products and is_amd_with_avx2():
            os.environ.setdefault(_MKL, "5")
        _mkl["own"] = os.environ.get(_MKL)
    elif training and not fast_products and _mkl["own"] != _mkl["users"]:
        log.warning(
            "An earlier training in this process has switched MKL's products to AVX2, which cannot be taken back: the "
            "weights of this one differ in their last digits from those that a process of its own gives."
        )
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
        with _redirected_notes(notes), restored_handlers(_TAKEN), home_for_paddle():
            # It warns of any OMP_NUM_THREADS but 1.
            _import_paddle()
        log.debug("Paddle's notes at import: %s", notes.getvalue().strip() or "none")
    keep_dynamic_mode()
    # Captured graphs are written as Python files, and read back; Paddle's choice is below ~/.cache.
    vars(importlib.import_module("paddle.jit.dy2static.utils"))["get_temp_dir"] = _captures_folder


def mkl_cpu_type() -> str | None:
    """MKL_DEBUG_CPU_TYPE as MKL has it in this process, which decides how products round on processors of AMD."""
    return _mkl.get("own")


def restore_environment() -> None:
    """Give MKL_DEBUG_CPU_TYPE the user's value again, for processes that are started later."""
    if _mkl and _mkl["own"] != _mkl["users"]:
        os.environ.pop(_MKL, None)


@contextlib.contextmanager
def _redirected_notes(notes: io.StringIO) -> Iterator[None]:
    """Write standard error to `notes`; log handlers that the block adds are removed from the root, or get the stream.

    Paddle's import configures the root logger, whose handler would keep `notes` and take every later message.
    """
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        with contextlib.redirect_stderr(notes):
            yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        loggers = [logger for logger in root.manager.loggerDict.values() if isinstance(logger, logging.Logger)]
        for handler in [handler for logger in loggers for handler in logger.handlers]:
            if isinstance(handler, logging.StreamHandler) and handler.stream is notes:
                handler.setStream(sys.stderr)


_dynamic: list[object] = []


def keep_dynamic_mode() -> None:
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
        with without_collector():  # it would take a tenth of the time
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
            code="paddle-missing",
        ) from None
    if not hasattr(paddle, "disable_signal_handler"):
        raise DependencyError(
            "PaddlePaddle is damaged: files are missing. Probably one of its two wheels was removed after both were "
            "installed.",
            where=str(next(iter(paddle.__path__), "paddle")),
            fix=paddle_build.reinstall(),
            code="paddle-damaged",
        )
    paddle.disable_signal_handler()
