"""Files of `torch.save`, made opcode by opcode, so that tests need no PyTorch and can lie in every field."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Iterable, Mapping

MAGIC = 0x1950A86A20F9469CFC6C


def text(value: str) -> bytes:
    """A text."""
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int, size: int = 8) -> bytes:
    """An integer of `size` bytes."""
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def row(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def name(dotted: str) -> bytes:
    """A global: what a careless unpickler would import."""
    module, _, attribute = dotted.rpartition(".")
    return f"c{module}\n{attribute}\n".encode()


def call(dotted: str, *parts: bytes) -> bytes:
    """A global, called."""
    return name(dotted) + row(*parts) + b"R"


def mapping(items: Mapping[str, bytes], ordered: bool = True) -> bytes:
    """A dictionary; PyTorch's state dicts are ordered ones."""
    begin = call("collections.OrderedDict") if ordered else b"}"
    return begin + b"(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def storage(kind: str, key: str, count: int, *view: bytes) -> bytes:
    """A reference to a storage; the older form has a further element, None."""
    return row(text("storage"), name(f"torch.{kind}"), text(key), text("cpu"), number(count), *view) + b"Q"


def tensor(stored: bytes, shape: Iterable[int], strides: Iterable[int], offset: int = 0) -> bytes:
    """A view of a storage."""
    sizes, steps = (row(*map(number, values)) for values in (shape, strides))
    hooks = call("collections.OrderedDict")
    return call("torch._utils._rebuild_tensor_v2", stored, number(offset), sizes, steps, b"\x89", hooks)


def pickled(content: bytes) -> bytes:
    """A pickle of protocol 2, as torch.save writes."""
    return b"\x80\x02" + content + b"."


def archive(
    content: bytes,
    storages: Mapping[str, bytes],
    folder: str = "archive",
    more: Mapping[str, bytes] | None = None,
    packed: bool = False,
) -> bytes:
    """The form since PyTorch 1.6, of the opcodes of its content."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as members:
        members.writestr(f"{folder}/data.pkl", pickled(content))
        for key, data in {**(more or {}), **{f"data/{key}": data for key, data in storages.items()}}.items():
            members.writestr(f"{folder}/{key}", data)
    return stream.getvalue()


def legacy(
    content: bytes, storages: Mapping[str, tuple[int, bytes]], protocol: int = 1001, little: bool = True
) -> bytes:
    """The form before 1.6.

    Args:
        content: opcodes.
        storages: key -> (number of elements, bytes).
        protocol: 1001 in all files.
        little: whether the file says that it is of a little-endian machine.
    """
    system = mapping({"little_endian": b"\x88" if little else b"\x89"}, ordered=False)
    keys = b"](" + b"".join(map(text, storages)) + b"e"
    heads = (number(MAGIC, 10), number(protocol, 2), system, content, keys)
    data = (struct.pack("<q", count) + raw for count, raw in storages.values())
    return b"".join([*map(pickled, heads), *data])
