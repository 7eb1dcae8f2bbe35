"""Convolutions of the dynamic graph through oneDNN, for training on a CPU.

Paddle 3.3's dynamic graph never uses oneDNN for convolutions; a static program does. The
whole model as one static program would take BatchNorm and ReLU along, whose oneDNN gradients
are slow, so each Conv2D alone becomes a program. A work-around for one Paddle version: it
is checked against the native convolution before use, and left out where it disagrees.
"""

from __future__ import annotations

import logging
import os

import numpy as np
import paddle
from paddle import nn

from paddlex_feat.errors import FeatError

log = logging.getLogger(__name__)


class _ConvProgram(nn.Layer):
    """A convolution with a copy at each end, so that no tensor leaves in oneDNN's layout."""

    def __init__(self, conv: nn.Conv2D):
        super().__init__()
        self.conv = conv

    def forward(self, x: paddle.Tensor) -> paddle.Tensor:
        # Without the two copies Paddle 3.3.1 crashes at the program's ends.
        return paddle.assign(nn.Conv2D.forward(self.conv, paddle.assign(x)))


def _attach(conv: nn.Conv2D) -> None:
    program = paddle.jit.to_static(_ConvProgram(conv), full_graph=True)
    # Past Layer.__setattr__, which would register the program and change the state dict.
    object.__setattr__(conv, "forward", program.__call__)


# (input channels, output channels, kernel, stride, groups): one convolution of each kind in use.
_KINDS = ((8, 16, 3, 2, 1), (16, 16, 5, 1, 16), (16, 16, 3, 2, 16), (16, 24, 1, 1, 1))


def _agrees(cin: int, cout: int, kernel: int, stride: int, groups: int) -> bool:
    """Does a program give the native output and gradients on a small convolution?"""
    x = paddle.to_tensor(np.random.default_rng(0).standard_normal((2, cin, 9, 9)).astype("float32"))
    results = []
    native, program = (nn.Conv2D(cin, cout, kernel, stride, kernel // 2, groups=groups) for _ in range(2))
    program.set_state_dict(native.state_dict())
    _attach(program)
    for conv in (native, program):
        data = x.clone()
        data.stop_gradient = False
        y = conv(data)
        (y * y).sum().backward()
        results.append([t.numpy() for t in (y, data.grad, conv.weight.grad, conv.bias.grad)])
    return all(np.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(*results, strict=True))


# Memory in units of all inputs and outputs of the convolutions: what the native graph holds, and what the
# programs hold more, for each keeps both ends, their copies and their gradients. Measured: 94 and 172 MB an
# image of PP-ShiTuV2_rec at 224 px, whose ends are 61 MB.
_NATIVE, _PROGRAMS = 1.6, 2.9


def memory_needed(model: nn.Layer, batch_size: int, input_size: int) -> int:
    """Bytes that a training step with the programs holds, as far as convolutions decide it."""
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
    return int((_NATIVE + _PROGRAMS) * 4 * elements * batch_size)


def accelerate(model: nn.Layer, batch_size: int = 1, input_size: int = 32, memory: int | None = None) -> bool:
    """Route every Conv2D of `model` through oneDNN; state-dict names stay.

    Args:
        model: the network, changed in place.
        batch_size: images of a training step.
        input_size: side of these images in pixels.
        memory: bytes that a step may take; None: not checked.

    Returns False, with a notice, where the programs do not agree with the native operator or would
    not fit. Needs FLAGS_use_mkldnn=1 in the environment before Paddle was imported.
    """
    if os.environ.get("FLAGS_use_mkldnn") != "1":
        return False
    needed = memory_needed(model, batch_size, input_size) if memory is not None else 0
    if memory is not None and needed > memory:
        log.warning(
            "Batches of %d at %d px would take about %.0f GB with oneDNN convolutions, of %.0f that there are: "
            "Paddle's native ones take a third, and several times as long. A smaller Train.batch_size is faster.",
            batch_size,
            input_size,
            needed / 1e9,
            memory / 1e9,
        )
        return False
    try:
        agrees = all(_agrees(*kind) for kind in _KINDS)
    except FeatError:  # no temporary file can be written, which the first export would find out after an epoch
        raise
    except Exception as error:  # noqa: BLE001 - any failure of the work-around means: use the native operator
        log.warning("oneDNN convolutions failed their self-check (%s)", error)
        agrees = False
    if not agrees:
        log.warning("Training uses Paddle's native convolutions: correct, but several times slower.")
        return False
    for layer in model.sublayers():
        if isinstance(layer, nn.Conv2D):
            _attach(layer)
    return True
