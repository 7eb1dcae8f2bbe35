"""Scaled dot-product attention: which kernel computes it."""

from __future__ import annotations

import functools

import paddle
import paddle.nn.functional as F

_FLASH_CAPABILITY = (8, 0)  # compute capability that Paddle's flash attention needs
_FLASH_HEAD = 8  # its head dimension is a multiple of this


def attention(q: paddle.Tensor, k: paddle.Tensor, v: paddle.Tensor) -> paddle.Tensor:
    """softmax(Q K^T / sqrt(D)) V for each head: [N, T, H, D] each -> [N, T, H, D].

    Paddle's fused kernels exist on GPUs only, and which one it takes depends on its version: before 3.3 it takes flash
    attention on every GPU, for float32 too, which that kernel does not support. A graph captured on a GPU would contain
    the fused operator, and would run neither on a CPU nor in ONNX. So the explicit products are the rule, and flash
    attention is used for half precision in the dynamic graph on a GPU that has it. On a CPU the products are what
    Paddle's own function computes, operator for operator.
    """
    if _has_flash_attention(q):
        return F.scaled_dot_product_attention(q, k, v)
    q, k, v = (t.transpose([0, 2, 1, 3]) for t in (q, k, v))
    weights = F.softmax(paddle.matmul(q * q.shape[-1] ** -0.5, k, transpose_y=True))
    return paddle.matmul(weights, v).transpose([0, 2, 1, 3])


@paddle.jit.not_to_static
def _has_flash_attention(q: paddle.Tensor) -> bool:
    return (
        paddle.in_dynamic_mode()
        and q.dtype in (paddle.float16, paddle.bfloat16)
        and q.place.is_gpu_place()
        and q.shape[-1] % _FLASH_HEAD == 0
        and _capability(q.place.gpu_device_id()) >= _FLASH_CAPABILITY
    )


@functools.cache
def _capability(gpu: int) -> tuple[int, int]:
    capability: tuple[int, int] = paddle.device.cuda.get_device_capability(gpu)
    return capability
