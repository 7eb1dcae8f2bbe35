"""Weight files of PyTorch, read as plain data: both forms of `torch.save`, and TorchScript archives.

A zip archive has the pickle in `<name>/data.pkl` and the bytes of each storage in a file `<name>/data/<key>`. The
form before version 1.6 has five pickles in a row, then each storage as its number of elements and its bytes. An
archive of `torch.jit.save`, such as OpenAI's of CLIP, is of the first form with objects of classes whose code is in the
archive too: an object is read as the dictionary of its attributes, and the code is not read at all. As with every
pickle here, nothing that a file names is looked up.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Any, cast

import numpy as np

from paddlex_feat.errors import WeightsError
from paddlex_feat.models import safe_pickle
from paddlex_feat.models.safe_pickle import MAX_LOOKUPS, SafeUnpickler, Standin, refused

SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")  # of files that are written by PyTorch
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of the form before 1.6
_PROTOCOL = 1001  # the second
_ZIP = b"PK"
_MAX_PICKLE_BYTES = 2**28
_MAX_DIRECTORY_BYTES = 2**24  # of an archive's list of members: 100,000 tensors and more
_MAX_DIMS = 32
_MAX_NAME = 200  # characters of a tensor's name in a TorchScript module
# Names of storages in the pickle -> dtype of their elements; bfloat16 has none in NumPy.
_BFLOAT16 = "bfloat16"
_DTYPES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "BFloat16": _BFLOAT16,
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
    "Bool": "|b1",
}


def load(stream: IO[bytes]) -> Any:
    """The content of a file that `torch.save` wrote: plain containers with NumPy arrays for tensors.

    A TorchScript module becomes a dictionary of its tensors by their names in the module's state dict.

    Arrays share the memory of their storage; those of bfloat16 become float32.

    Raises:
        WeightsError: the file holds anything but tensors and plain data. A damaged file raises any other exception.
    """
    if stream.read(2) == _ZIP:
        return _load_zip(stream)
    stream.seek(0)
    return _load_legacy(stream)


def is_torch(stream: IO[bytes]) -> bool:
    """Does the file begin as those of PyTorch do? The position in the file stays."""
    start = stream.read(14)
    stream.seek(-len(start), os.SEEK_CUR)
    return start[:2] == _ZIP or (start[2:4] == b"\x8a\n" and int.from_bytes(start[4:14], "little") == _MAGIC)


class _Kind:
    """A class of storages, by the dtype of its elements."""

    def __init__(self, dtype: str):
        self.dtype = dtype


class _Storage:
    """Bytes of one storage; in the older form they follow after the pickle."""

    def __init__(self, dtype: str, count: int, data: bytes | None = None):
        self.dtype = dtype
        self.count = count
        self.data = data

    @property
    def element_bytes(self) -> int:
        return 2 if self.dtype == _BFLOAT16 else np.dtype(self.dtype).itemsize

    def elements(self) -> np.ndarray:
        """All elements, [count]; bfloat16 as float32."""
        if self.data is None or len(self.data) != self.count * self.element_bytes:
            raise ValueError("a storage has more or fewer bytes than the file says")
        if self.dtype == _BFLOAT16:  # the upper half of a float32
            wide = np.frombuffer(self.data, "<u2").astype("<u4") << 16
            self.data, self.dtype = wide.tobytes(), "<f4"
        return np.frombuffer(self.data, self.dtype)


class _Tensor(Standin):
    """A tensor: a view of a storage, whose bytes may be read later."""

    def __init__(self, storage: Any, offset: Any, shape: Any, strides: Any, *_: Any):
        if not isinstance(storage, _Storage):
            raise refused("a tensor without a storage")
        sizes, steps = tuple(map(int, shape)), tuple(map(int, strides))
        offset, last = int(offset), int(offset) + sum((n - 1) * s for n, s in zip(sizes, steps, strict=True))
        count = math.prod(sizes)
        if len(sizes) > _MAX_DIMS or min((offset, *sizes, *steps), default=0) < 0 or count > storage.count:
            raise ValueError("a tensor has more elements than its storage, or a negative size")
        if count and last >= storage.count:
            raise ValueError("a tensor lies outside its storage")
        self._storage, self._offset, self._shape, self._steps = storage, offset, sizes, steps

    @property
    def value(self) -> np.ndarray:
        """The elements, read-only."""
        flat = self._storage.elements()[self._offset :]
        if not math.prod(self._shape):
            return np.zeros(self._shape, flat.dtype)
        strides = [step * flat.itemsize for step in self._steps]
        return np.lib.stride_tricks.as_strided(flat, self._shape, strides, writeable=False)


def _parameter(tensor: Any, *_: Any) -> _Tensor:
    if not isinstance(tensor, _Tensor):
        raise refused("a parameter that is not a tensor")
    return tensor


_ADMITTED: dict[str, Callable[..., Any]] = {
    **SafeUnpickler.admitted,
    "torch._utils._rebuild_tensor_v2": _Tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
_SCRIPTED = "__torch__."  # modules of the classes in a TorchScript archive


class _Attributes(dict[str, Any]):
    """An object of TorchScript."""


def _untyped(value: Any, *_: Any) -> Any:
    """A container to which TorchScript has noted its type."""
    if not isinstance(value, (list, dict)):
        raise refused("a type of something other than a container")
    return value


_ADMITTED |= {f"torch.jit._pickle.{name}": _untyped for name in ("restore_type_tag", "build_intlist")}
_KINDS = {f"torch.{name}Storage": _Kind(dtype) for name, dtype in _DTYPES.items()}


class _Unpickler(SafeUnpickler):
    """Admits tensors and their storages too."""

    admitted = _ADMITTED

    def __init__(self, stream: IO[bytes], size: int, storage: Callable[[str, str, int], _Storage]):
        super().__init__(stream, size)
        self._storage = storage
        self._attributes_left = MAX_LOOKUPS
        handlers: dict[int, Any] = self.dispatch
        handlers[pickle.BINPERSID[0]] = _Unpickler._persistent
        handlers[pickle.BUILD[0]] = _Unpickler._build_but_for_metadata
        handlers[pickle.NEWOBJ[0]] = _Unpickler._new_scripted

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name. Raises WeightsError for one that is not admitted."""
        if f"{module}.".startswith(_SCRIPTED):
            return _Attributes
        return _KINDS.get(f"{module}.{name}") or super().find_class(module, name)

    def _build_but_for_metadata(self) -> None:
        """A state dict carries versions of its layers as an attribute, which nothing here needs."""
        made = self.stack[-2]
        if isinstance(made, _Attributes):
            self._set_attributes(made, self.stack.pop())
        elif isinstance(made, dict):
            self.stack.pop()
        else:
            self._build()

    def _set_attributes(self, made: _Attributes, attributes: Any) -> None:
        if not isinstance(attributes, dict):
            raise refused("an object of TorchScript with a state of its own")
        self._attributes_left -= len(attributes)  # one dictionary may be given to many objects
        if self._attributes_left < 0:
            raise ValueError("objects with millions of attributes")
        made.update(attributes)

    def _new_scripted(self) -> None:
        """An object of TorchScript, whose attributes follow."""
        arguments, kind = self.stack.pop(), self.stack.pop()
        if kind is not _Attributes or arguments != ():
            raise refused("an object of a class")
        self.stack.append(_Attributes())

    def _persistent(self) -> None:
        """A reference to a storage: ("storage", its class, key, device, number of elements[, view])."""
        name = self.stack.pop()
        if not isinstance(name, tuple) or len(name) not in (5, 6) or name[0] != "storage":
            raise refused("an object outside the pickle")
        _, kind, key, _, count, *view = name
        if not isinstance(kind, _Kind) or not isinstance(key, str) or type(count) is not int or count < 0:
            raise refused("a storage of another form")
        if view and view[0] is not None:
            raise refused("a view of a storage")
        self.stack.append(self._storage(kind.dtype, key, count))


class _Directory:
    """The file of an archive while its list of members is read, which Python keeps with 10 times its size.

    Attributes:
        read_whole: whether the list has been read, so that long reads are of storages.
    """

    read_whole = False

    def __init__(self, stream: IO[bytes]):
        self._stream = stream
        self.seek, self.tell, self.seekable = stream.seek, stream.tell, stream.seekable

    def read(self, count: int = -1) -> bytes:
        """The next `count` bytes; -1: all. Raises WeightsError for a list of members that no weight file needs."""
        if not self.read_whole and count > _MAX_DIRECTORY_BYTES:
            raise WeightsError("This is not a weight file: it has too many parts.", code="weights-too-many-values")
        return self._stream.read(count)


def _load_zip(stream: IO[bytes]) -> Any:
    directory = _Directory(stream)
    with zipfile.ZipFile(cast(IO[bytes], directory)) as archive:
        directory.read_whole = True
        members = {member.filename: member for member in archive.infolist()}
        found = [name for name in members if name.count("/") <= 1 and name.endswith("data.pkl")]
        if len(found) != 1:
            raise WeightsError("The archive is not one of torch.save: it has no data.pkl.", code="weights-damaged")
        folder = found[0].removesuffix("data.pkl")
        _require_stored(members, folder)
        order = members.get(f"{folder}byteorder")
        if order is not None and archive.read(order) != b"little":
            raise WeightsError("The weights are of a big-endian machine.", code="weights-damaged")
        if members[found[0]].file_size > _MAX_PICKLE_BYTES:
            raise WeightsError("This is not a weight file: its pickle is too large.", code="weights-too-many-values")
        storages: dict[str, _Storage] = {}
        left = os.fstat(stream.fileno()).st_size  # members may overlap, so that many small ones hold the same bytes

        def storage(dtype: str, key: str, count: int) -> _Storage:
            nonlocal left
            if key not in storages:
                member = members[f"{folder}data/{key}"]
                left -= member.file_size
                if left < 0:
                    raise ValueError("the storages are larger than the file")
                storages[key] = _Storage(dtype, count, archive.read(member))
            return _same(storages[key], dtype, count)

        data = archive.read(found[0])
        content = _Unpickler(io.BytesIO(data), len(data), storage).load()
        plain = safe_pickle.plain(content)
        return dict(_tensors_within(plain)) if isinstance(content, _Attributes) else plain


def _tensors_within(module: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    """The arrays of a TorchScript module and those below it, by their names from the outermost."""
    for own, value in module.items():
        name = prefix + own
        if len(name) > _MAX_NAME:  # a long name above many tensors would take memory without limit
            raise ValueError("a tensor with a name of hundreds of characters")
        if isinstance(value, dict):
            yield from _tensors_within(value, f"{name}.")
        elif isinstance(value, np.ndarray):
            yield name, value


def _require_stored(members: Mapping[str, zipfile.ZipInfo], folder: str) -> None:
    """PyTorch compresses nothing but TorchScript's code, so that no file can unpack to more than it has."""
    code = f"{folder}code/"
    packed = [
        name
        for name, member in members.items()
        if member.compress_type != zipfile.ZIP_STORED and not name.startswith(code)
    ]
    if packed:
        raise WeightsError(
            f"A member of the archive is compressed, which torch.save never does: {packed[0][:80]!r}.",
            fix="Save the weights with torch.save, or as .safetensors.",
            code="weights-unsafe",
        )


def _same(storage: _Storage, dtype: str, count: int) -> _Storage:
    """The storage, which the file must describe alike each time."""
    if (storage.dtype, storage.count) != (dtype, count):
        raise ValueError("a storage is described in two ways")
    return storage


def _load_legacy(stream: IO[bytes]) -> Any:
    size = os.fstat(stream.fileno()).st_size
    storages: dict[str, _Storage] = {}

    def storage(dtype: str, key: str, count: int) -> _Storage:
        return _same(storages.setdefault(key, _Storage(dtype, count)), dtype, count)

    def next_pickle() -> Any:
        return _Unpickler(stream, size, storage).load()

    magic, protocol, system = next_pickle(), next_pickle(), next_pickle()
    if (magic, protocol) != (_MAGIC, _PROTOCOL) or not isinstance(system, dict) or not system.get("little_endian"):
        raise WeightsError("The file is not one of torch.save, or of a big-endian machine.", code="weights-damaged")
    content, keys = next_pickle(), next_pickle()
    if not isinstance(keys, list) or sorted(keys) != sorted(storages):
        raise ValueError("the storages are not those that the file names")
    for key in keys:
        (count,) = struct.unpack("<q", _exactly(stream, 8, size))
        known = storages[key]
        if count != known.count:
            raise ValueError("a storage has another number of elements than the file says")
        known.data = _exactly(stream, count * known.element_bytes, size)
    return safe_pickle.plain(content)


def _exactly(stream: IO[bytes], count: int, size: int) -> bytes:
    """The next `count` bytes. Raises EOFError if the file does not have them."""
    if count > size - stream.tell():
        raise EOFError("it ends too early")
    return stream.read(count)
