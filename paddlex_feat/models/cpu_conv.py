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


def accelerate(model: nn.Layer) -> bool:
    """Route every Conv2D of `model` through oneDNN; state-dict names stay.

    Returns False, with a notice, where the programs do not agree with the native operator.
    Needs FLAGS_use_mkldnn=1 in the environment before Paddle was imported.
    """
    if os.environ.get("FLAGS_use_mkldnn") != "1":
        return False
    try:
        agrees = all(_agrees(*kind) for kind in _KINDS)
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
