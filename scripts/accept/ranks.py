"""Started once a device by jobs.one_batch_on_two: three steps with this rank's share of each batch.

ranks.py RESULT    writes the weights to RESULT.<rank>.npz
"""

from __future__ import annotations

import os
import sys

import numpy as np

from accept.networks import CLIP_BASE, batch, build
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle


def main(target: str) -> None:
    """Train and save."""
    prepare_paddle(1)
    import paddle

    group = ProcessGroup.from_environment()
    # Paddle's launcher sets it to the number among the visible GPUs that this rank takes.
    device = "cpu" if "ACCEPT_ON_CPU" in os.environ else f"gpu:{os.environ.get('FLAGS_selected_gpus', '0')}"
    paddle.set_device(device)
    group.init()
    training = build(CLIP_BASE, device)
    step = training.step(group=group, cross_device_negatives=True)
    for number in range(3):
        images, labels = batch(CLIP_BASE.input_size, seed=number)
        step([(images[group.rank :: group.size], labels[group.rank :: group.size])])
    np.savez(f"{target}.{group.rank}.npz", **{n: t.numpy() for n, t in training.model.state_dict().items()})


if __name__ == "__main__":
    main(sys.argv[1])
