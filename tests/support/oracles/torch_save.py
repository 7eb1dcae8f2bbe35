"""State dicts saved by PyTorch in both of its forms, and what they hold.

    python torch_save.py FOLDER

Writes FOLDER/zip.pth and FOLDER/legacy.pth, FOLDER/zip_checkpoint.pth and legacy_checkpoint.pth, which have the state
dict one level down, and FOLDER/expected.npz; bfloat16, which NumPy does not have, as float32.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn

DTYPES = (
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.int16, torch.int8,
    torch.uint8, torch.bool,
)  # fmt: skip


def main(folder: Path) -> None:
    """Write the files."""
    torch.manual_seed(0)
    layer = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Conv2d(2, 4, 3).to(memory_format=torch.channels_last))
    shared = torch.arange(24.0).reshape(4, 6)
    state = layer.state_dict()  # with versions of its layers as an attribute
    state |= {str(dtype).partition(".")[2]: (torch.randn(2, 3) * 3).to(dtype) for dtype in DTYPES}
    state |= {"whole": shared, "turned": shared.T, "part": shared[1:3, ::2], "expanded": shared[0, :1].expand(5)}
    state |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 3), "parameter": nn.Parameter(torch.randn(3))}
    for form, new in (("zip", True), ("legacy", False)):
        torch.save(state, folder / f"{form}.pth", _use_new_zipfile_serialization=new)
        wrapped = {f"module.{name}": value for name, value in state.items()}
        checkpoint = {"epoch": 3, "lr": 0.1, "name": "x", "sizes": [1, (2, 3)], "state_dict": wrapped}
        torch.save(checkpoint, folder / f"{form}_checkpoint.pth", _use_new_zipfile_serialization=new)
    plain = {name: value.detach() for name, value in state.items()}
    np.savez(
        folder / "expected.npz",
        **{name: (value.float() if value.dtype == torch.bfloat16 else value).numpy() for name, value in plain.items()},
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
