"""Weight files."""

from __future__ import annotations

import io
import pickle
import random
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np

from support import torch_bytes
from support.fuzz.target import Target, mutate


def _pickled(value: object, protocol: int = 4) -> bytes:
    return pickle.dumps(value, protocol=protocol)


def _state() -> dict[str, np.ndarray]:
    return {"weight": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)}


def _sound() -> list[bytes]:
    import paddle

    from paddlex_feat.models import weights

    tensors = {name: paddle.to_tensor(value) for name, value in _state().items()}
    files = [_pickled(_state(), protocol) for protocol in (2, 3, 4)]
    for protocol in (2, 3, 4):
        stream = io.BytesIO()
        paddle.save(tensors, stream, protocol=protocol)
        files.append(stream.getvalue())
    progress = {"epoch": 3, "best": 0.5, "scaler": {}, "history": [1, 2.5, None, True, "x"], "scalar": np.float32(1)}
    stream = io.BytesIO()
    weights._PlainPickler(stream, protocol=4).dump(_state())
    return [
        *files,
        stream.getvalue(),
        _pickled(progress),
        _pickled(OrderedDict(_state())),
        _pickled({"w": ("n", np.ones(3))}),
        *_of_torch(),
    ]


def _linear(weight: bytes, bias: bytes) -> bytes:
    """The opcodes of a state dict that fits paddle.nn.Linear(4, 3)."""
    return torch_bytes.mapping({"weight": weight, "bias": bias})


def _of_torch(kind: str = "FloatStorage", count: int = 15, last: int = 3, **places: Any) -> list[bytes]:
    """Both forms of torch.save; other arguments than these make them lie."""
    stored = torch_bytes.storage(kind, "0", count)
    weight = {"shape": (4, 3), "strides": (3, 1), "offset": 0, **places}
    content = _linear(torch_bytes.tensor(stored, **weight), torch_bytes.tensor(stored, (last,), (1,), 12))
    data = np.ones(15, np.float32).tobytes()
    return [torch_bytes.archive(content, {"0": data}), torch_bytes.legacy(content, {"0": (15, data)})]


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _array(shape: bytes, dtype: bytes, more: bytes = b"") -> bytes:
    """A file {"weight": numpy.ndarray(shape, dtype, …)}, the arguments as opcodes."""
    return b"\x80\x04}\x8c\x06weight" + _global("numpy", "ndarray") + b"(" + shape + dtype + more + b"tRs."


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def _int(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)


def _doubled(levels: int, begin: bytes, pair: bytes) -> bytes:
    """A pair of the pair before, and so on: `2 ** levels` values when written out."""
    out = begin + b"q\x000"
    for level in range(levels):
        out += pair.replace(b"BELOW", b"h" + bytes([level])) + b"q" + bytes([level + 1]) + b"0"
    return out + b"h" + bytes([levels])


def _crafted() -> list[bytes]:
    kinds = ("f4", "O", "V1000000", "U99999999")
    names = (("os", "system"), ("builtins", "eval"), ("numpy", "load"))
    sizes = (2**28, 2**31, 2**40, 2**62, -1)
    bad_state = b"(K\x03X\x01\0\0\0<NN" + b"(t" + _int(2**40) + _int(-7) + _int(3) + b"tb"
    dtype = _global("numpy", "dtype") + b"(X\x02\0\0\0f4tR"
    made = _global("numpy.core.multiarray", "_reconstruct") + b"(" + _global("numpy", "ndarray") + b"(K\0tC\x01btR"
    return [
        *(_array(b"(" + _int(size) + b"t", _text(kind)) for size in sizes for kind in kinds),
        _array(b"(" + _int(2**27) * 60 + b"t", _text("f4")),
        _array(b"(K\x03t", _text("f4"), b"C\x02ab"),
        _array(b"(K\x03t", _text("O"), b"C\x18" + b"\x41" * 24),  # addresses of objects
        _array(b"(K\x01t", _text("f4"), b"C\x10" + b"\x41" * 16 + _int(2**40)),
        _array(b"(K\x04t", _text("f4"), b"C\x10" + b"\x41" * 16 + b"K\0(" + _int(2**40) + b"t"),
        b"\x80\x04}\x8c\x01w" + dtype + bad_state + b"s.",
        b"\x80\x04}\x8c\x01w" + made + b"(K\x01(" + _int(2**40) + b"t" + dtype + b"\x89C\x04abcdtbs.",
        b"\x80\x04}\x8c\x01w" + made + b"(K\x01(K\x01t" + _global("numpy", "dtype") + b"(X\x01\0\0\0OtR\x89]K\x01atbs.",
        b"\x80\x04}\x8c\x01w" + _global("numpy.core.multiarray", "scalar") + b"(" + dtype + b"C\x01atRs.",
        b"\x80\x04}\x8c\x01w" + _global("numpy.core.multiarray", "scalar") + b"(" + _global("numpy", "dtype")
        + b"(X\x01\0\0\0OtRC\x08AAAAAAAAtRs.",
        b"\x80\x04}\x8c\x01w" + _global("_codecs", "encode") + b"(" + _text("a" * 100) + _text("zlib") + b"tRs.",
        b"\x80\x04}\x8c\x01w" + _global("_codecs", "encode") + b"(" + _text("a") + _text("no-such") + b"tRs.",
        b"\x80\x04}\x8c\x01w" + _doubled(60, b"]", b"](BELOWBELOWe") + b"s.",
        b"\x80\x04}\x8c\x01w" + _doubled(60, b"}", b"}(X\x01\0\0\0aBELOWX\x01\0\0\0bBELOWu") + b"s.",
        b"\x80\x04}" + _doubled(60, b")", b"BELOWBELOW\x86") + b"K\x01s.",  # a key whose hash takes for ever
        b"\x80\x04}" + _doubled(60, b")", _global("builtins", "tuple") + b"BELOWBELOW\x86\x85R") + b"K\x01s.",
        b"\x80\x04}q\0X\x01\0\0\0ah\0s.",  # a dictionary that holds itself
        b"\x80\x04]q\0h\0a.",
        b"\x80\x04}r\xff\xff\xff\x7f.",  # a place in the memory of references that would need 16 GiB
        b"\x80\x04}r\xff\xff\xff\x0f.",
        b"\x80\x04\x95" + b"\xff" * 8 + b"}.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**31) + b"x.",
        b"\x80\x04\x8b\xff\xff\xff\x7fx.",
        b"\x80\x04" + b"(" * 100_000 + b".",
        b"\x80\x04" + b"]" * 100_000 + b"a" * 99_999 + b".",
        b"\x80\x04}\x8c\x01w" + b"]" * 90_000 + b"a" * 89_999 + b"s.",
        b"\x80\x04}" + b"X\x01\0\0\0a}" * 5000 + b"s" * 5000 + b".",
        b"I" + b"9" * 1_000_000 + b"\n.",
        b"L" + b"9" * 1_000_000 + b"L\n.",
        *(b"\x80\x04}X\x01\0\0\0a" + _global(*name) + b"s." for name in names),
        _pickled({"weight": np.zeros((4, 3), "O"), "bias": np.zeros(3)}, 2),
        _pickled({"weight": np.full((4, 3), np.nan, np.float32), "bias": np.zeros(3, "f4")}),
        _pickled({"weight": np.zeros((4, 3), "c8"), "bias": np.zeros(3, "M8[s]")}),
        _pickled({"weight": np.zeros((4, 3), [("a", "f4"), ("b", "O")]), "bias": np.zeros(3, "S3")}),
        _pickled({"x" * 100_000: np.zeros(3, "f4")}),
        _pickled({n: np.zeros(1, "f4") for n in range(3000)}),
        *(file for kind in ("Half", "Double", "BFloat16", "Bool") for file in _of_torch(f"{kind}Storage")),
        *(file for count in (*sizes, 14, 0) for file in _of_torch(count=count)),
        *(file for size in sizes for file in _of_torch(last=size)),
        *(file for size in sizes for file in _of_torch(offset=size)),
        *(file for size in sizes for file in _of_torch(shape=(size, 3)) + _of_torch(strides=(size, 1))),
        *(file for module, name in names for file in _in_torch(torch_bytes.call(f"{module}.{name}", b"K\x01"))),
        *_in_torch(torch_bytes.storage("FloatStorage", "0", 0)),
        *_in_torch(torch_bytes.name("torch.FloatStorage")),
        *_in_torch(b"]" * 90_000 + b"a" * 89_999),
        torch_bytes.archive(b"}", {"0": bytes(2**20)}, packed=True),
        torch_bytes.archive(b"}" + b"0}" * 2**20, {}, packed=True),
        torch_bytes.archive(b"}", {str(n): b"" for n in range(3000)}),
    ]  # fmt: skip


def _in_torch(value: bytes) -> list[bytes]:
    content = torch_bytes.mapping({"weight": value})
    return [torch_bytes.archive(content, {}), torch_bytes.legacy(content, {})]


_TOKENS = [bytes([code]) for code in b"().]}Rbsut012NQ" + bytes(range(0x80, 0x99))] + [
    b"h\0", b"q\0", b"j\0\0\0\0", b"r\xff\xff\0\0", b"P0\n", b"Q", b"K\0", _int(2**40), _int(-1),
    b"f4", b"O", b"|V8", b"numpy", b"dtype", b"ndarray", b"_reconstruct", _global("os", "system"),
    torch_bytes.name("torch.DoubleStorage"), torch_bytes.name("torch._utils._rebuild_parameter"),
]  # fmt: skip


def _grow(rng: random.Random, data: bytes) -> bytes:
    """A mutation; within an archive, whose checksums would give it away, of a member's content."""
    if not data.startswith(b"PK"):
        return mutate(rng, data, _TOKENS)
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(stream, "w") as after:
        for name in before.namelist():
            content = before.read(name)
            after.writestr(name, mutate(rng, content, _TOKENS) if name.endswith(".pkl") else content)
    return stream.getvalue()


def _use(data: bytes, folder: Path) -> str:
    from paddle import nn

    from paddlex_feat.errors import WeightsError
    from paddlex_feat.models import weights
    from paddlex_feat.training.checkpoint import read_progress

    path = folder / "a.pdparams"
    path.write_bytes(data)
    try:
        weights.load(nn.Linear(4, 3), path)
    except WeightsError:
        read_progress(path)  # most mutations of a file of another kind get this far only
    weights.write(folder / "b.pdparams", weights.read(path))
    return "accepted"


WEIGHTS = Target(
    "weights",
    _sound,
    _crafted,
    _TOKENS,
    _use,
    _grow,
)
