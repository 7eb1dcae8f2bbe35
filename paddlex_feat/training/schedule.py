"""Learning rate by step."""

from __future__ import annotations

import math


def warmup_cosine(base: float, step: int, steps_per_epoch: int, epochs: int, warmup_epochs: float) -> float:
    """Linear warm-up from 0, then half a cosine to 0 (Loshchilov & Hutter, arXiv:1608.03983).

    With W = round(w * N) warm-up steps, w = min(warmup_epochs, epochs), and T = (epochs - w) * N:
    base * t / W for t < W, else base * (1 + cos(pi * (t - W) / T)) / 2.

    Args:
        base: peak rate.
        step: t, from 0.
        steps_per_epoch: N.
        epochs: length of the run, warm-up included.
        warmup_epochs: length of the warm-up; need not be a whole number.
    """
    warmup = min(warmup_epochs, epochs)
    warmup_steps = round(warmup * steps_per_epoch)
    if step < warmup_steps:
        return base * step / warmup_steps
    decay_steps = (epochs - warmup) * steps_per_epoch
    if decay_steps <= 0:
        return base
    return base * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / decay_steps))
