"""Choices among Paddle's kernels for a training: TF32, mixed precision, BatchNorm of all devices, oneDNN."""

from __future__ import annotations

import contextlib
import logging

import paddle

from paddlex_feat.config.schema import Config
from paddlex_feat.config.train_schema import TrainSection
from paddlex_feat.errors import DeviceError
from paddlex_feat.models import cpu_conv
from paddlex_feat.models.recognizer import Recognizer
from paddlex_feat.modes.parts import keeps_rounding
from paddlex_feat.modes.worker import Worker
from paddlex_feat.runtime.cpu import cpu_count, memory_limit
from paddlex_feat.training.stop import defer_signals

log = logging.getLogger(__name__)
# As PaddleClas sets them with mixed precision: BatchNorm in one pass where its sums cannot overflow, and up to 8
# gradients of one tensor added in place.
_AMP_FLAGS = {"FLAGS_cudnn_batchnorm_spatial_persistent": 1, "FLAGS_max_inplace_grad_add": 8}
_TF32_SWITCHES = ("set_cublas_switch", "set_cudnn_switch")


def choose_kernels(settings: TrainSection, worker: Worker) -> None:
    """Set Paddle's process-wide switches as Train.amp, autotune and tf32 ask. Nothing on a CPU."""
    if worker.device == "cpu":
        return
    if settings.autotune:
        paddle.incubate.autotune.set_config({"kernel": {"enable": True}, "layout": {"enable": True}})
    if settings.amp != "OFF":
        for name, value in _AMP_FLAGS.items():
            with contextlib.suppress(ValueError):  # a Paddle that does not know the flag
                paddle.set_flags({name: value})
    if settings.tf32 is None:
        return
    for name in _TF32_SWITCHES:  # private: of 3.0 to 3.3
        switch = getattr(paddle.base.core, name, None)
        if switch is None:
            log.warning("Train.tf32 has no effect: this Paddle has no paddle.base.core.%s.", name)
        else:
            switch(settings.tf32)


def share_statistics(settings: TrainSection, model: Recognizer, worker: Worker) -> None:
    """With Train.sync_bn make every BatchNorm take its statistics from the batches of all processes.

    Before the optimizer is made. Names and tensors of the state stay as they are. Raises DeviceError for several
    processes on a CPU.
    """
    if not settings.sync_bn:
        return
    if worker.group.size == 1:
        log.info("Train.sync_bn has no effect in a single process.")
        return
    if worker.device == "cpu":
        raise DeviceError(
            "Paddle cannot synchronise BatchNorm on a CPU: it has no such kernel.",
            where="Train.sync_bn",
            fix="Use -o Train.sync_bn=False, or train on GPUs.",
            code="sync-bn-on-cpu",
        )
    paddle.nn.SyncBatchNorm.convert_sync_batchnorm(model)


def choose_convolutions(config: Config, model: paddle.nn.Layer, worker: Worker) -> str:
    """On a CPU, compute the convolutions of a training with oneDNN if that works.

    Returns what run.json says of them: "native", or "oneDNN" with ", channels last" and ", compiled loops" where so.
    """
    settings = config.Train
    if worker.device != "cpu" or not settings.onednn_conv or settings.dy2st:
        return "native"
    largest = max(settings.input_size, settings.final_size or 0)
    share = memory_limit() * 9 // 10 // worker.group.local_size
    with defer_signals():
        threads = (worker.threads or cpu_count()) if settings.compiled_loops else None
        last = not keeps_rounding(config)
        done = cpu_conv.accelerate(model, settings.batch_size, largest, share, last, threads)
    if not done:
        return "native"
    ways = {", channels last": cpu_conv.has_channels_last(model), ", compiled loops": cpu_conv.has_loops(model)}
    return "oneDNN" + "".join(way for way, taken in ways.items() if taken)
