"""Parameter files of inference directories."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from paddlex_feat.errors import WeightsError
from paddlex_feat.inference.engines.parameter_check import check_params_complete
from support.fuzz.target import Target


def _tensor(description: bytes, numbers: int, levels: tuple[int, ...] = ()) -> bytes:
    lengths = b"".join(struct.pack("<Q", length) + bytes(length) for length in levels)
    head = struct.pack("<IQ", 0, len(levels)) + lengths
    return head + struct.pack("<Ii", 0, len(description)) + description + bytes(numbers)


def _sound() -> list[bytes]:
    vector, kernel = b"\x08\x05\x10\x40", b"\x08\x05\x10\x04\x10\x03\x10\x03\x10\x03"
    one_piece, none = b"\x08\x03\x12\x02\x02\x03", b"\x08\x16"
    return [
        _tensor(vector, 256) + _tensor(kernel, 432),
        _tensor(one_piece, 48) + _tensor(none, 2),
        _tensor(vector, 256, levels=(16, 0)) * 3,
    ]


def _crafted() -> list[bytes]:
    largest = b"\xff" * 8 + b"\x7f"
    return [
        b"",
        struct.pack("<IQ", 0, 2**64 - 1),
        struct.pack("<IQQ", 0, 1, 2**64 - 1),
        *(struct.pack("<IQIi", 0, 0, 0, length) for length in (-1, 5000, 2**31 - 1)),
        _tensor(b"\x08\x05" + (b"\x10" + largest) * 300, 8),
        _tensor(b"\x08\x05\x10" + b"\xff" * 9 + b"\x01", 8),
        _tensor(b"\x08\x05\x10" + b"\x80" * 4000, 8),
        _tensor(b"\x08\x05\x12" + largest + b"\x01", 8),
        _tensor(b"\x08\x05\x10\x00", 0) * 20_000,
    ]


def _use(data: bytes, folder: Path) -> str:
    file = folder / "inference.pdiparams"
    file.write_bytes(data)
    check_params_complete(file)
    if data:  # no file is whole both with its last byte and without it
        file.write_bytes(data[:-1])
        with pytest.raises(WeightsError):
            check_params_complete(file)
    return "accepted"


PARAMETERS = Target(
    "parameters",
    _sound,
    _crafted,
    [b"\0" * 4, b"\0" * 12, b"\x08\x05", b"\x08\x16", b"\x10\x01", b"\x12\x01\x01", b"\xff" * 8, b"\x7f"],
    _use,
)
