"""Ranks share what is rank 0's, and end an evaluation together when one of them is told to.

    python votes.py INFERENCE DATA RESULT

Each rank writes RESULT.<rank>.npz: the tensors it was given, and after how many batches it ended.
"""

import sys
from pathlib import Path

import numpy as np

from paddlex_feat.data.readers import require_lists
from paddlex_feat.errors import Interrupted
from paddlex_feat.evaluation.evaluator import Evaluator
from paddlex_feat.inference.extractor import FeatureExtractor
from paddlex_feat.runtime.distributed import ProcessGroup
from paddlex_feat.runtime.paddle_import import prepare_paddle


def main(inference: str, data: str, result: str) -> None:
    """Exchange, evaluate until told to end, and save."""
    prepare_paddle(1)
    import paddle

    from paddlex_feat.training.votes import Votes

    group = ProcessGroup.from_environment()
    group.init()
    sent = [np.full((2, 3), group.rank), np.float32(group.rank + 0.5), np.arange(4, dtype=np.float32) + group.rank]
    broadcasts = []
    exchange = paddle.distributed.broadcast
    paddle.distributed.broadcast = lambda tensor, src: (broadcasts.append(tensor.dtype), exchange(tensor, src=src))
    shared = group.broadcast_tensors([paddle.to_tensor(array) for array in sent])

    looks = 0
    # The last rank has the fewest batches.
    votes = Votes(group, lambda: looks >= 3 and group.rank == group.size - 1, always=True)

    def look() -> None:
        nonlocal looks
        looks += 1
        if votes.after_one():
            raise Interrupted("told")

    lists = require_lists(data, ("gallery", "query"))
    try:
        Evaluator(lists, 2, 1, group)(FeatureExtractor(Path(inference), "cpu", 1), look)
    except Interrupted:
        looks = -looks
    arrays = {f"shared{i}": tensor.numpy() for i, tensor in enumerate(shared)}
    np.savez(f"{result}.{group.rank}.npz", looks=looks, broadcasts=len(broadcasts), **arrays)


if __name__ == "__main__":
    main(*sys.argv[1:4])
