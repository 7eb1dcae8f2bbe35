"""What the losses on cosines share: unit rows, logarithms of masked sums, the mean of what is not yet solved."""

from __future__ import annotations

import paddle

_NOTHING = -1e30  # exp gives 0 beside any cosine, and its gradient is 0 instead of NaN, as it would be for -inf

_SOLVED = 1e-37  # counts as 0: Paddle's exp gives 1e-38 for anything below


def unit_rows(x: paddle.Tensor) -> paddle.Tensor:
    """Rows of [N, D] at length 1; half precision becomes float32.

    A row shorter than 1e-6 has no direction: it becomes 0, with gradient 0.
    """
    if x.dtype in (paddle.float16, paddle.bfloat16):
        x = x.astype("float32")
    square = (x * x).sum(axis=1, keepdim=True)
    shortest = paddle.full_like(square, 1e-12)
    inverse = paddle.rsqrt(paddle.maximum(square, shortest))  # finite where it is not used, so its gradient is 0
    return x * paddle.where(square > shortest, inverse, paddle.zeros_like(square))


def log_sum_exp(z: paddle.Tensor, counts: paddle.Tensor) -> paddle.Tensor:
    """log(sum of exp(z)) over the entries of each row that count: [N, M], bool [N, M] -> [N].

    A row in which nothing counts gives -1e30, whose exponential and gradient are 0.
    """
    return paddle.logsumexp(paddle.where(counts, z, paddle.full_like(z, _NOTHING)), axis=1)


def log1p_sum_exp(z: paddle.Tensor, counts: paddle.Tensor) -> paddle.Tensor:
    """log(1 + sum of exp(z)) over the entries of each row that count: [N, M], bool [N, M] -> [N]."""
    z = paddle.where(counts, z, paddle.full_like(z, _NOTHING))
    return paddle.logsumexp(paddle.concat([paddle.zeros_like(z[:, :1]), z], axis=1), axis=1)


def softplus(x: paddle.Tensor) -> paddle.Tensor:
    """log(1 + exp(x)), elementwise, exact where Paddle's own rounds to 0: below -17."""
    return paddle.maximum(x, paddle.zeros_like(x)) + paddle.log1p(paddle.exp(-x.abs()))


def mean_above_zero(losses: paddle.Tensor) -> paddle.Tensor:
    """Mean of the losses above 0 of [N], a scalar; 0 with gradient 0 if there are none."""
    counts = (losses > _SOLVED).astype(losses.dtype)
    return (losses * counts).sum() / counts.sum().clip(min=1)
