"""Detect truncated Paddle parameter files, whose last tensor Paddle would fill with arbitrary memory.

The layout is that of Paddle's `SerializeToStream`, little-endian, tensor after tensor: version of the record, number of
levels of detail and each with its length, version of the tensor, length of its description, a protobuf message
(1: data type, 2: shape), and the values.
"""

from __future__ import annotations

import math
import os
import struct
from pathlib import Path
from typing import BinaryIO

from paddlex_feat.errors import WeightsError

_MAX_DESCRIPTION_BYTES = 4096  # bytes; that of a tensor of four dimensions has some 15
# Bytes a number by VarType.Type of Paddle's framework.proto: bool, int16 … float64, uint8, int8, bfloat16, complex.
_WIDTHS = {0: 1, 1: 2, 2: 4, 3: 8, 4: 2, 5: 4, 6: 8, 20: 1, 21: 1, 22: 2, 23: 8, 24: 16}


def check_params_complete(path: Path) -> None:
    """Raise WeightsError unless the .pdiparams file ends where its last tensor does. No value is read."""
    try:
        with path.open("rb") as stream:
            end = os.fstat(stream.fileno()).st_size
            while stream.tell() < end:
                _skip_tensor(stream)
                if stream.tell() > end:
                    raise ValueError(f"{stream.tell() - end} bytes of a tensor are missing")
    except (OSError, ValueError, OverflowError, KeyError, IndexError, struct.error) as error:
        raise WeightsError(
            f"The parameters cannot be read ({type(error).__name__}: {str(error)[:100]}).",
            where=str(path),
            fix="Copy or export the model again; an official one is fetched again once its folder is deleted.",
            code="params-incomplete",
        ) from error


def _skip_tensor(stream: BinaryIO) -> None:
    levels = _number(stream, "<4xQ")
    if levels > _MAX_DESCRIPTION_BYTES:
        raise ValueError(f"{levels} levels of detail")
    for _ in range(levels):
        stream.seek(_number(stream, "<Q"), os.SEEK_CUR)
    length = _number(stream, "<4xi")
    if not 0 <= length <= _MAX_DESCRIPTION_BYTES:
        raise ValueError(f"a description of {length} bytes")
    kind, shape = _described(stream.read(length))
    stream.seek(_WIDTHS[kind] * math.prod(shape), os.SEEK_CUR)


def _number(stream: BinaryIO, form: str) -> int:
    return int(struct.unpack(form, stream.read(struct.calcsize(form)))[0])


def _described(message: bytes) -> tuple[int, list[int]]:
    """Data type and shape of a description. Raises ValueError, IndexError."""
    kind, shape, position = -1, [], 0
    while position < len(message):
        tag, position = _varint(message, position)
        if tag == 2 << 3 | 2:  # a packed field
            length, position = _varint(message, position)
            last = position + length
        elif tag in (1 << 3, 2 << 3):
            last = position + 1
        else:
            raise ValueError(f"a description with the tag {tag}")
        while position < last:
            value, position = _varint(message, position)
            if tag == 1 << 3:
                kind = value
            else:
                shape.append(value)
    return kind, shape


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """A protobuf varint and the position after it. Raises ValueError from 2^63 on, as for a negative number."""
    value = 0
    for shift in range(0, 63, 7):
        byte = message[position]
        position += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, position
    raise ValueError("a number below 0 or of more than 63 bits")
