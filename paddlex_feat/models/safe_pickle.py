"""Pickles that may be hostile, read as plain data: arrays, numbers, texts, bytes, dictionaries, lists, tuples.

Nothing that a file names is looked up: the few names of which weight files are made stand for functions of
this module, which build arrays of numbers, and every other name is refused. The machine is Python's own
unpickler in Python. The one in C allocates as many slots as a file of 20 bytes says, and cannot be told which
instructions there are.
"""

from __future__ import annotations

import math
import os
import pickle
import re
from collections.abc import Callable
from typing import IO, Any

import numpy as np

from paddlex_feat.errors import WeightsError

# Instructions, and values in the result: of a checkpoint nearly all are the labels of the run's classes. A value
# takes about 100 bytes, so a file that holds nothing else takes 200 MB, and some seconds.
MAX_LOOKUPS, MAX_DEPTH = 2_000_000, 20
_PLAIN_TYPE = re.compile(r"[<>=|]?(\?|[biufc]\d{1,2}|[SU]\d{1,4})")  # no objects, no fields
_FIX = "Do not use this file: loading it with a plain unpickler could run code."


def load(stream: IO[bytes]) -> Any:
    """The content of a pickle of protocol 2 to 4.

    Raises WeightsError that names what is neither an array nor a plain container. A damaged file raises any
    other exception. Arrays cannot be written to: they share the memory of what was read.
    """
    return plain(SafeUnpickler(stream, os.fstat(stream.fileno()).st_size).load())


def refused(name: str) -> WeightsError:
    """The error of a file that asks for `name`."""
    what = f"The file asks for {name}, which is neither an array nor a plain container."
    return WeightsError(what, fix=_FIX, code="weights-unsafe")


class Standin:
    """What a file's name for an object stands for until the pickle is read.

    Attributes:
        value: the array, number or type; None before its state is known.
    """

    value: Any = None

    def __setstate__(self, state: Any) -> None:
        raise refused(f"a state of {type(self).__name__}")


class _Type(Standin):
    """A dtype of numbers; the pickle gives its byte order after it was made."""

    def __init__(self, code: Any, *_: Any):
        if not isinstance(code, str) or not _PLAIN_TYPE.fullmatch(code):
            raise refused(f"numpy.dtype({str(code)[:40]!r})")
        self.value = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        if state[2:5] != (None, None, None) or state[1] not in tuple("<>=|"):
            raise refused("a numpy.dtype with fields")
        self.value = self.value.newbyteorder(state[1])


class _Array(Standin):
    """An array, empty until the pickle gives its state."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = _array(shape, dtype, data, order="F" if fortran else "C").value

    @classmethod
    def empty(cls, kind: Any, *_: Any) -> _Array:
        """What `numpy.core.multiarray._reconstruct` makes."""
        if kind is not _array:
            raise refused("an array of another class than numpy.ndarray")
        return cls()


def _array(shape: Any, dtype: Any, data: Any = None, order: Any = "C") -> _Array:
    """An array over the bytes `data`, which are not copied. Raises ValueError if they are not as many as it needs."""
    kind = (dtype if isinstance(dtype, _Type) else _Type(dtype)).value
    if not isinstance(data, bytes) or len(shape) > 32 or len(data) != math.prod(shape) * kind.itemsize:
        raise ValueError("an array has more or fewer bytes than its shape says")
    made = _Array()
    made.value = np.frombuffer(data, kind).reshape(shape, order=order)
    return made


def _scalar(dtype: Any, data: Any) -> _Array:
    made = _array((), dtype, data)
    made.value = made.value[()]
    return made


def _tuple(items: Any) -> Any:
    """paddle.save marks a (name, array) pair so. Nothing is copied: many names for one tuple cost nothing."""
    if not isinstance(items, tuple):
        raise refused("builtins.tuple of another container")
    return items


def _empty(kind: type) -> Callable[[], Any]:
    return lambda: kind()


_ADMITTED: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": _array,
    "numpy.dtype": _Type,
    "collections.OrderedDict": _empty(dict),  # filled item by item
}
for _module in ("numpy.core.multiarray", "numpy._core.multiarray"):
    _ADMITTED |= {f"{_module}._reconstruct": _Array.empty, f"{_module}.scalar": _scalar}
for _module in ("builtins", "__builtin__"):  # the latter's in protocol 2
    _ADMITTED |= {f"{_module}.tuple": _tuple, f"{_module}.bytes": _empty(bytes)}
_ENCODE = "_codecs.encode"  # bytes in protocol 2

_OPCODES = (
    pickle.PROTO
    + pickle.FRAME
    + pickle.STOP
    + pickle.MARK
    + pickle.POP
    + pickle.POP_MARK
    + pickle.DUP
    + pickle.NONE
    + pickle.NEWTRUE
    + pickle.NEWFALSE
    + pickle.BININT
    + pickle.BININT1
    + pickle.BININT2
    + pickle.LONG1
    + pickle.LONG4
    + pickle.BINFLOAT
    + pickle.BINUNICODE
    + pickle.SHORT_BINUNICODE
    + pickle.BINUNICODE8
    + pickle.BINBYTES
    + pickle.SHORT_BINBYTES
    + pickle.BINBYTES8
    + pickle.EMPTY_DICT
    + pickle.EMPTY_LIST
    + pickle.EMPTY_TUPLE
    + pickle.TUPLE
    + pickle.TUPLE1
    + pickle.TUPLE2
    + pickle.TUPLE3
    + pickle.APPEND
    + pickle.APPENDS
    + pickle.SETITEM
    + pickle.SETITEMS
    + pickle.BINPUT
    + pickle.LONG_BINPUT
    + pickle.MEMOIZE
    + pickle.BINGET
    + pickle.LONG_BINGET
    + pickle.GLOBAL
    + pickle.STACK_GLOBAL
    + pickle.REDUCE
    + pickle.BUILD
)


class _Counted(dict[int, Any]):
    """The instructions there are; each look-up is one of `MAX_LOOKUPS`."""

    left = MAX_LOOKUPS

    def __getitem__(self, code: int) -> Any:
        self.left -= 1
        if self.left < 0:
            what = "This is not a weight file: it holds millions of values besides its arrays."
            raise WeightsError(what, code="weights-too-many-values")
        return super().__getitem__(code)


class SafeUnpickler(pickle._Unpickler):
    """Admits arrays, numbers, texts and plain containers; any other name is refused.

    Args:
        stream: where the pickle begins.
        size: bytes that the stream has.

    Attributes:
        admitted: what stands for the names that a file may ask for.
    """

    stack: list[Any]
    admitted = _ADMITTED

    def __init__(self, stream: IO[bytes], size: int):
        super().__init__(_Bounded(stream, size))
        self._encodable = size
        known = {code: pickle._Unpickler.dispatch[code] for code in _OPCODES}
        own = {
            pickle.REDUCE[0]: SafeUnpickler._reduce,
            pickle.BUILD[0]: SafeUnpickler._build,
            pickle.SETITEM[0]: SafeUnpickler._setitem,
            pickle.SETITEMS[0]: SafeUnpickler._setitems,
        }
        self.dispatch = _Counted(known | own)  # type: ignore[misc]

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name. Raises WeightsError for one that is not admitted."""
        if f"{module}.{name}" == _ENCODE:
            return self._encode
        try:
            return self.admitted[f"{module}.{name}"]
        except KeyError:
            raise refused(f"{module}.{name}") from None

    def _reduce(self) -> None:
        arguments, called = self.stack.pop(), self.stack[-1]
        if called not in self.admitted.values() and called != self._encode:
            raise refused("a call of something other than a name")
        self.stack[-1] = called(*arguments)

    def _build(self) -> None:
        state, made = self.stack.pop(), self.stack[-1]
        if not isinstance(made, Standin):
            raise refused(f"a state of {type(made).__name__}")
        made.__setstate__(state)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self.stack[-1][_key(key)] = value  # the hash of tuples in tuples, each named twice, would take for ever

    def _setitems(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        for key, value in zip(items[::2], items[1::2], strict=True):
            self.stack[-1][_key(key)] = value

    def _encode(self, text: Any, encoding: Any) -> bytes:
        """Bytes that a pickle of protocol 2 holds as text; all together no more than the file has."""
        if encoding != "latin1":
            raise refused(f"{_ENCODE} with {str(encoding)[:40]!r}")
        self._encodable -= len(text)
        if self._encodable < 0:
            raise ValueError("the file gives one text as bytes many times")
        encoded: bytes = text.encode("latin1")
        return encoded


class _Bounded:
    """A file that is asked for no more than it has; Python would set memory aside first."""

    def __init__(self, stream: IO[bytes], size: int):
        self._stream, self._size = stream, size
        self.readline = stream.readline

    def read(self, count: int) -> bytes:
        """The next `count` bytes. Raises EOFError if they are not there."""
        if count > 1 and count > self._size - self._stream.tell():
            raise EOFError("it ends too early")
        return self._stream.read(count)


def plain(value: Any) -> Any:
    """`value` with arrays for their stand-ins, as a tree: what occurs twice counts twice. Raises WeightsError."""
    return _plain(value, MAX_DEPTH, [MAX_LOOKUPS])


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0 or depth < 0:
        what = "This is not a weight file: its containers are nested without end."
        raise WeightsError(what, code="weights-nested")
    if isinstance(value, dict):
        return {_key(k): _plain(v, depth - 1, left) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(v, depth - 1, left) for v in value)
    if isinstance(value, Standin) and not isinstance(value, _Type):
        if value.value is None:
            raise ValueError("an array without content")
        return value.value
    if isinstance(value, int) and abs(value) >= 2**63:
        raise ValueError("a number of more than 64 bits")
    if value is None or isinstance(value, (str, bytes, int, float)):
        return value
    raise refused(f"{getattr(value, '__name__', type(value).__name__)} as a value")


def _key(key: Any) -> str:
    if not isinstance(key, (str, int)) or (isinstance(key, int) and abs(key) >= 2**63):
        raise ValueError("a name that is no text")
    return str(key)
