"""Convolutions of the dynamic graph through oneDNN, for training on a CPU.

Paddle 3.3's dynamic graph never uses oneDNN for convolutions; a static program does. The whole model as one static
program would take BatchNorm and ReLU along, whose oneDNN gradients are slow, so each Conv2D alone becomes a program.
With channels last, where asked for, oneDNN rearranges nothing before and after a convolution, those of 1 x 1 are plain
matrix products, and BatchNorm, activations and gradients of depthwise weights are compiled loops: a step takes half as
long. A work-around for one Paddle version: it is checked against the native operators before use, and left out where it
disagrees.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING

import numpy as np
import paddle
import paddle.nn.functional as F
from paddle import nn

from paddlex_feat.errors import FeatError
from paddlex_feat.models import depthwise, normalized_sum, token_layers

if TYPE_CHECKING:
    from paddlex_feat.models.compiled_kernels import Loops

log = logging.getLogger(__name__)


Forward = Callable[[paddle.Tensor], paddle.Tensor]


class _ConvProgram(nn.Layer):
    """A convolution with a copy at each end: without them Paddle 3.3.1 crashes at the ends of the program."""

    def __init__(self, conv: nn.Conv2D):
        super().__init__()
        self.conv = conv

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        return paddle.assign(nn.Conv2D.forward(self.conv, paddle.assign(x)))


class _ChannelsLastProgram(nn.Layer):
    """A convolution without bias of any weight, [N, H, W, C] -> [N, H', W', K]. It needs the copy at its end alone."""

    def __init__(self, conv: nn.Conv2D):
        super().__init__()
        self._settings = (conv._stride, conv._updated_padding, conv._dilation, conv._groups)

    def forward(self, x: paddle.Tensor, weight: paddle.Tensor) -> paddle.Tensor:
        return paddle.assign(F.conv2d(x, weight, None, *self._settings, data_format="NHWC"))


def _attach(conv: nn.Conv2D, loops: Loops | None = None) -> None:
    if _channels_last(conv):
        forward = _channels_last_forward(conv, loops)
    else:
        forward = paddle.jit.to_static(_ConvProgram(conv), full_graph=True).__call__
    # Past Layer.__setattr__, which would register the program and change the state dict.
    object.__setattr__(conv, "forward", forward)


def _channels_last(conv: nn.Conv2D) -> bool:
    return bool(conv._data_format == "NHWC")


def _channels_last_forward(conv: nn.Conv2D, loops: Loops | None) -> Forward:
    if (
        conv.weight.shape[2:] == [1, 1]
        and conv._groups == 1
        and conv._stride == [1, 1]
        and not any(conv._updated_padding)
    ):
        return partial(_product, conv)
    program = paddle.jit.to_static(_ChannelsLastProgram(conv), full_graph=True)
    own_gradient = loops is not None and depthwise.takes(conv) and not conv.weight.stop_gradient
    if not own_gradient and not conv.weight.stop_gradient:
        conv.weight.register_hook(partial(_channels_first, conv.weight.shape))

    def forward(x: paddle.Tensor) -> paddle.Tensor:
        y: paddle.Tensor
        if own_gradient and loops is not None:
            y = depthwise.add_weight_gradient(program(x, conv.weight.detach()), x, conv, loops)
        else:
            y = program(x, conv.weight)
        return y if conv.bias is None else y + conv.bias

    return forward


def _product(conv: nn.Conv2D, x: paddle.Tensor) -> paddle.Tensor:
    """A 1 x 1 convolution as the matrix product that it is: [N, H, W, C] -> [N, H, W, K]."""
    rows = paddle.matmul(x.reshape([-1, x.shape[-1]]), conv.weight.flatten(1), transpose_y=True)
    if conv.bias is not None:
        rows = rows + conv.bias
    return rows.reshape([*x.shape[:-1], rows.shape[-1]])


def _channels_first(shape: list[int], gradient: paddle.Tensor) -> paddle.Tensor:
    """The gradient of a weight [K, C, h, w], which Paddle 3.3.1 gives in the layout of the images: [K, h, w, C]."""
    outputs, inputs, *kernel = shape
    return gradient.reshape([outputs, *kernel, inputs]).transpose([0, 3, 1, 2]).contiguous()


# (input channels, output channels, kernel, stride, groups): one convolution of each kind in use.
_KINDS = ((8, 16, 3, 2, 1), (16, 16, 5, 1, 16), (16, 16, 3, 2, 16), (16, 16, 1, 1, 16), (16, 24, 1, 1, 1))


def _agrees(
    cin: int,
    cout: int,
    kernel: int,
    stride: int,
    groups: int,
    channels_last: bool = False,
    loops: Loops | None = None,
) -> bool:
    """Does a program give the native output and gradients on a small convolution?"""
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, cin, 9, 9)).astype("float32"))
    results = []
    native, program = (nn.Conv2D(cin, cout, kernel, stride, kernel // 2, groups=groups) for _ in range(2))
    program.set_state_dict(native.state_dict())
    if channels_last:
        program._data_format = "NHWC"
    _attach(program, loops)
    for conv in (native, program):
        data = x.clone()
        data.stop_gradient = False
        if _channels_last(conv):
            y = conv(data.transpose([0, 2, 3, 1]).contiguous()).transpose([0, 3, 1, 2])
        else:
            y = conv(data)
        (y * y).sum().backward()
        gradients = [tensor.grad for tensor in (data, *conv.parameters())]
        results.append([t.numpy() for t in (y, *gradients)])
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*results, strict=True))


# Memory of a training step in units of all inputs and outputs of the convolutions. With channels first each program
# keeps both ends, their copies and their gradients; with channels last 1 x 1 convolutions are no programs, and the
# others have one copy. Measured: 266 and 137 MB an image of PP-ShiTuV2_rec at 224 px, whose ends are 61 MB.
_CHANNELS_FIRST, _CHANNELS_LAST = 4.5, 2.3


def memory_needed(model: nn.Layer, batch_size: int, input_size: int, channels_last: bool = False) -> int:
    """Bytes that a training step with the programs holds, as far as convolutions decide it.

    channels_last: as `accelerate` takes it.
    """
    elements = 0

    def count(layer: nn.Layer, inputs: tuple[paddle.Tensor, ...], output: paddle.Tensor) -> None:
        nonlocal elements
        elements += inputs[0].size + output.size

    convolutions = [layer for layer in model.sublayers() if isinstance(layer, nn.Conv2D)]
    hooks = [layer.register_forward_post_hook(count) for layer in convolutions]
    training = model.training
    model.eval()  # statistics stay as they are
    with paddle.no_grad():
        model(paddle.zeros([1, 3, input_size, input_size]))
    for hook in hooks:
        hook.remove()
    if training:
        model.train()
    factor = _CHANNELS_LAST if channels_last and _able(model) else _CHANNELS_FIRST
    return int(factor * 4 * elements * batch_size)


def accelerate(
    model: nn.Layer,
    batch_size: int = 1,
    input_size: int = 32,
    memory: int | None = None,
    channels_last: bool = False,
    threads: int | None = None,
) -> bool:
    """Route every Conv2D of `model` through oneDNN; state-dict names stay.

    Args:
        model: the network, changed in place.
        batch_size: images of a training step.
        input_size: side of these images in pixels.
        memory: bytes that a step may take; None: not checked.
        channels_last: let a network that can compute with channels last do so. It rounds otherwise then.
        threads: that share the compiled loops of such a network; None: Paddle's operators are used instead.

    Returns False, with a notice, where the programs do not agree with the native operator or would
    not fit. Needs FLAGS_use_mkldnn=1 in the environment before Paddle was imported.
    """
    if os.environ.get("FLAGS_use_mkldnn") != "1":
        return False
    needed = memory_needed(model, batch_size, input_size, channels_last) if memory is not None else 0
    if memory is not None and needed > memory:
        log.warning(
            "Batches of %d at %d px would take about %.0f GB with oneDNN convolutions, of %.0f that there are: "
            "Paddle's native ones take less, and several times as long. A smaller Train.batch_size is faster.",
            batch_size,
            input_size,
            needed / 1e9,
            memory / 1e9,
        )
        return False
    try:
        agrees = all(_agrees(*kind) for kind in _KINDS)
        if agrees and channels_last:
            _put_channels_last(model)
        loops = _compiled_loops(threads) if threads and channels_last else None
    except FeatError:  # no temporary file can be written, which the first export would find out after an epoch
        raise
    except Exception as error:  # noqa: BLE001 - any failure of the work-around means: use the native operator
        log.warning("oneDNN convolutions failed their self-check (%s)", error)
        agrees = False
    if not agrees:
        log.warning("Training uses Paddle's native convolutions: correct, but several times slower.")
        return False
    last = has_channels_last(model)
    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D) and _channels_last(layer) == last:  # see `thread_for_channels_last`
            _attach(layer, loops)
    for layer in model.sublayers(include_self=True) if loops is not None else ():
        if hasattr(layer, "use_loops"):
            layer.use_loops(loops)
    return True


def thread_for_channels_last() -> ThreadPoolExecutor:
    """A thread of its own, in which all forward and backward passes with channels last have to run.

    Paddle 3.3.1 notes for each thread that a program had its channels last and never takes that back: a program with
    channels first would end the process in the same thread.
    """
    return ThreadPoolExecutor(1, "channels last", paddle.set_device, ("cpu",))


def _put_channels_last(model: nn.Layer) -> None:
    """Make the part of the network that can compute with channels last do so, if that agrees with native operators."""
    able = _able(model)
    if not able:
        return
    try:
        agrees = thread_for_channels_last().submit(_all_agree_channels_last, None).result()
    except FeatError:
        raise
    except Exception as error:  # noqa: BLE001 - channels first has passed its own check
        log.warning("Convolutions with channels last: %s", error)
        agrees = False
    if agrees:
        able[0].use_channels_last()
    else:
        log.warning("Convolutions with channels last failed their self-check: training goes on with channels first.")


def _able(model: nn.Layer) -> list[nn.Layer]:
    """The parts of a network that can compute with channels last."""
    return [layer for layer in model.sublayers(include_self=True) if hasattr(layer, "use_channels_last")]


def has_channels_last(model: nn.Layer) -> bool:
    """Whether `accelerate` has made the network, or a part of it, compute with channels last."""
    return any(getattr(layer, "channels_last", False) for layer in model.sublayers(include_self=True))


def has_loops(model: nn.Layer) -> bool:
    """Whether `accelerate` has made the network, or a part of it, compute by compiled loops."""
    return any(getattr(layer, "loops", None) is not None for layer in model.sublayers())


def _all_agree_channels_last(loops: Loops | None) -> bool:
    return all(_agrees(*kind, channels_last=True, loops=loops) for kind in _KINDS)


def _compiled_loops(threads: int) -> Loops | None:
    """What shares the compiled loops among threads; None, with a notice, where they are missing or do not agree."""
    if find_spec("numba") is None:
        log.info("Training takes about a quarter longer without Numba: pip install numba")
        return None
    try:
        from paddlex_feat.models.compiled_kernels import Loops

        loops = Loops(threads)
        convolutions = thread_for_channels_last().submit(_all_agree_channels_last, loops).result()
        agrees = convolutions and normalized_sum.agrees(loops) and token_layers.agrees(loops)
    except FeatError:
        raise
    except Exception as error:  # noqa: BLE001 - Paddle's operators are there in any case
        log.warning("Compiled loops: %s", error)
        agrees = False
    if agrees:
        return loops
    log.warning("Compiled loops failed their self-check: training goes on with Paddle's operators.")
    return None
