"""The group of processes of a job: rank and size, and collectives for arrays.

A single process is a group of one, for which nothing is imported and nothing is sent.
"""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command asks for its rank before it needs any of this
    from collections.abc import Sequence

    import numpy as np
    import paddle

ENV_COMMAND = "PADDLEX_FEAT_COMMAND"  # environment of a worker: the command that the user typed


def logs_folder(mode: str) -> str:
    """Folder of the ranks' logs below the output folder; for mode train, PaddleX's name."""
    return f"distributed_{mode}_logs"


@dataclass(frozen=True)
class ProcessGroup:
    """Rank and number of processes; all exchanges go through paddle.distributed.

    Attributes:
        rank: 0 … size - 1; rank 0 writes files and speaks to the console.
        local_rank, local_size: the same among the processes of this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def from_environment(cls) -> ProcessGroup:
        """The group that paddle.distributed.launch has put this process in; a group of one without it."""
        rank, size, local_rank, local_size = (
            int(os.environ.get(name, default))
            for name, default in (
                ("PADDLE_TRAINER_ID", "0"),
                ("PADDLE_TRAINERS_NUM", "1"),
                ("PADDLE_LOCAL_RANK", "0"),
                ("PADDLE_LOCAL_SIZE", "1"),
            )
        )
        return cls(rank, size, local_rank, local_size) if size > 1 else cls()

    def init(self) -> None:
        """Connect to the others; needed once, after the device was chosen."""
        if self.size > 1:
            import paddle.distributed

            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                paddle.distributed.init_parallel_env()  # prints the flags that are set

    def all_gather_rows(self, rows: np.ndarray) -> list[np.ndarray]:
        """The arrays of all ranks, in rank order. Their first dimensions may differ."""
        if self.size == 1:
            return [rows]
        import numpy as np
        import paddle
        import paddle.distributed

        counts: list[paddle.Tensor] = []
        paddle.distributed.all_gather(counts, paddle.to_tensor([len(rows)], "int64"))
        lengths = [int(c.numpy()[0]) for c in counts]
        padded = np.zeros((max(lengths), *rows.shape[1:]), rows.dtype)
        padded[: len(rows)] = rows
        parts: list[paddle.Tensor] = []
        paddle.distributed.all_gather(parts, paddle.to_tensor(padded))
        return [part.numpy()[:length] for part, length in zip(parts, lengths, strict=True)]

    def all_reduce(self, array: np.ndarray, how: Literal["sum", "max"] = "sum") -> np.ndarray:
        """The sum, or the largest, of the arrays of all ranks, element by element; shape and dtype must agree."""
        if self.size == 1:
            return array
        import paddle
        import paddle.distributed

        tensor = paddle.to_tensor(array)
        operation = paddle.distributed.ReduceOp.SUM if how == "sum" else paddle.distributed.ReduceOp.MAX
        paddle.distributed.all_reduce(tensor, operation)
        result: np.ndarray = tensor.numpy()
        return result

    def broadcast(self, array: np.ndarray) -> np.ndarray:
        """Rank 0's array, on every rank; shape and dtype must agree."""
        if self.size == 1:
            return array
        import paddle
        import paddle.distributed

        tensor = paddle.to_tensor(array)
        paddle.distributed.broadcast(tensor, src=0)
        received: np.ndarray = tensor.numpy()
        return received

    def broadcast_bytes(self, data: bytes) -> bytes:
        """Rank 0's data, on every rank."""
        if self.size == 1:
            return data
        import numpy as np

        length = int(self.broadcast(np.array([len(data) if self.rank == 0 else 0], np.int64))[0])
        if not length:
            return b""
        content = np.frombuffer(data, np.uint8) if self.rank == 0 else np.empty(length, np.uint8)
        return self.broadcast(content).tobytes()

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The data of all ranks, in rank order."""
        if self.size == 1:
            return [data]
        import numpy as np

        return [part.tobytes() for part in self.all_gather_rows(np.frombuffer(data, np.uint8))]

    def broadcast_tensors(self, tensors: Sequence[paddle.Tensor]) -> list[paddle.Tensor]:
        """Rank 0's values of tensors, on every rank and on their device, by one broadcast for each dtype.

        Shapes and dtypes must agree among the ranks.
        """
        if self.size == 1:
            return list(tensors)
        import paddle
        import paddle.distributed

        result = list(tensors)
        for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
            indices = [i for i, tensor in enumerate(tensors) if tensor.dtype == dtype]
            flat = paddle.concat([tensors[i].detach().flatten() for i in indices])
            paddle.distributed.broadcast(flat, src=0)
            parts = paddle.split(flat, [tensors[i].size for i in indices])
            for i, part in zip(indices, parts, strict=True):
                result[i] = part.reshape(tensors[i].shape)
        return result

    def any_rank(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.vote(flag, 0)[0]

    def vote(self, flag: bool, number: int) -> tuple[bool, int]:
        """Whether any rank says yes, and rank 0's `number` (below 2**31), by one exchange."""
        if self.size == 1:
            return flag, number
        import paddle
        import paddle.distributed

        votes = paddle.to_tensor([int(flag), 0 if self.rank else number], "int32")
        paddle.distributed.all_reduce(votes)
        yes, number = votes.numpy().tolist()
        return yes > 0, number
